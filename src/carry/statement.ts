import * as v from "valibot";
import { canonicalJson } from "../canonical-json.js";
import { releaseName, sequenceNumber, sha256Hex } from "../bundle/manifest.js";
import { ZferryError } from "../errors.js";
import { parseForm, table } from "../schema.js";
import { encodeSignature, parseSignature, sign, type SecretKey, type Signature } from "../trust/minisign.js";

// formats/request.md, The file: what a site says of itself, in a line of canonical JSON, and its signature below that.

export const releaseOfBundle = table({
  name: releaseName,
  sequence: sequenceNumber,
  identity: v.pipe(sha256Hex, v.description("SHA-256 of the bundle's SHA256SUMS.")),
});
export const programVersion = v.pipe(v.string(), v.regex(/^[0-9A-Za-z.+-]{1,64}$/, "is not a version"));

export const MAX_STATEMENT_BYTES = 1 << 20;
const MAX_MARKS = 100_000;

/** The kinds of statements, each with what its schema says. */
export type StatementKind = "request" | "receipt";

export interface Statement<Value> {
  readonly value: Value;
  /** What is signed: the first line, with its end. */
  readonly message: Uint8Array;
  /** Not verified; undefined where nobody signed. */
  readonly signature: Signature | undefined;
}

/** The bytes of a statement; not signed without a key. */
export function encodeStatement(
  value: { readonly kind: StatementKind; readonly site: string },
  key: SecretKey | undefined,
): Uint8Array {
  const message = Buffer.from(`${canonicalJson(value)}\n`);
  if (key === undefined) return message;
  const trustedComment = `zferry ${value.kind} of site ${value.site}`;
  return Buffer.concat([message, encodeSignature(sign(key, message, { trustedComment }))]);
}

/**
 * Reads a statement, and verifies nothing.
 * @param name of the file, for messages
 * @throws ZferryError `statement-malformed`, `signature-malformed`, `format-unsupported`
 */
export function parseStatement<Schema extends v.GenericSchema>(
  schema: Schema,
  kind: StatementKind,
  bytes: Uint8Array,
  name: string,
): Statement<v.InferOutput<Schema>> {
  const malformed = (fault: string): ZferryError =>
    new ZferryError("statement-malformed", `${kind} ${name}: ${fault}`, { details: { file: name } });
  if (bytes.length > MAX_STATEMENT_BYTES) {
    throw malformed(`has ${bytes.length} bytes, the limit is ${MAX_STATEMENT_BYTES}`);
  }
  const end = bytes.indexOf(NEWLINE);
  if (end === -1) throw malformed("its first line does not end");
  const value = parseForm(schema, bytes.subarray(0, end), {
    format: STATEMENT_FORMAT,
    maxMarks: MAX_MARKS,
    judge: (found) =>
      "kind" in found && typeof found.kind === "string" && found.kind !== kind
        ? `is a ${found.kind}, no ${kind}`
        : undefined,
    malformed,
    unsupported: (found) =>
      new ZferryError(
        "format-unsupported",
        `${kind} ${name} has format ${found}, this zferry reads format ${STATEMENT_FORMAT}`,
        { details: { file: name, found }, hint: "use the zferry that wrote it, or a newer one" },
      ),
  });
  const rest = bytes.subarray(end + 1);
  return {
    value,
    message: bytes.subarray(0, end + 1),
    signature: rest.length === 0 ? undefined : parseSignature(rest, name),
  };
}

const NEWLINE = 0x0a;
export const STATEMENT_FORMAT = 1;

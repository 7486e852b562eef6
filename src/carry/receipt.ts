import * as v from "valibot";
import { productName } from "../bundle/manifest.js";
import { siteName } from "../config.js";
import {
  installed,
  resultOf,
  seconds,
  type Installation,
  type Journal,
  type SiteState,
} from "../install/state.js";
import { integer, list, table } from "../schema.js";
import type { SecretKey } from "../trust/minisign.js";
import {
  encodeStatement,
  parseStatement,
  programVersion,
  releaseOfBundle,
  STATEMENT_FORMAT,
  type Statement,
} from "./statement.js";

// formats/receipt.md: what a site installed, carried back to the build host.

const MAX_INSTALLATIONS = 100;

export const receiptSchema = table({
  format: v.literal(STATEMENT_FORMAT),
  kind: v.picklist(["receipt"]),
  site: siteName,
  made: v.pipe(seconds, v.description("Seconds since 1970, by the site's clock.")),
  zferry: programVersion,
  product: productName,
  events: v.pipe(
    integer(0),
    v.description("Installs, rollbacks and confirmations so far: a receipt with more is a later one."),
  ),
  highestSequence: integer(0),
  installed: v.pipe(v.nullable(releaseOfBundle), v.description("Null for nothing by zferry.")),
  underWay: v.pipe(
    v.nullable(table({ operation: v.picklist(["install", "rollback"]), release: releaseOfBundle })),
    v.description("What was interrupted, and is to go on."),
  ),
  installations: v.pipe(
    list(
      table({
        release: releaseOfBundle,
        startedAt: seconds,
        finishedAt: seconds,
        result: v.picklist(["installed", "confirmed", "rolled-back"]),
        resultAt: v.pipe(seconds, v.description("When that result was there.")),
      }),
      MAX_INSTALLATIONS,
    ),
    v.description("The last ones, newest first."),
  ),
});
export type Receipt = v.InferOutput<typeof receiptSchema>;

/** What a site's state says, as a receipt. */
export function makeReceipt(
  state: SiteState | undefined,
  journal: Journal | undefined,
  { site, product, made, zferry }: Pick<Receipt, "site" | "product" | "made" | "zferry">,
): Receipt {
  const installations = state?.installations ?? [];
  return {
    format: STATEMENT_FORMAT,
    kind: "receipt",
    site,
    made,
    zferry,
    product,
    events: installations.reduce(
      (sum, each) => sum + (each.confirmedAt === undefined ? 1 : 2) + (each.rolledBack === undefined ? 0 : 1),
      0,
    ),
    highestSequence: state?.highestSequence ?? 0,
    installed: installed(state)?.release ?? null,
    // A merge is no release's.
    underWay:
      journal === undefined || journal.operation === "merge"
        ? null
        : { operation: journal.operation, release: journal.release },
    installations: installations.slice(-MAX_INSTALLATIONS).reverse().map(describe),
  };
}

function describe(installation: Installation): Receipt["installations"][number] {
  const { release, startedAt, finishedAt, confirmedAt, rolledBack } = installation;
  const resultAt = rolledBack?.finishedAt ?? confirmedAt ?? finishedAt;
  return { release, startedAt, finishedAt, result: resultOf(installation), resultAt };
}

/** What is written is what can be read. */
export function encodeReceipt(receipt: Receipt, key: SecretKey | undefined): Uint8Array {
  const bytes = encodeStatement(receipt, key);
  parseReceipt(bytes, "of this site");
  return bytes;
}

/**
 * Reads a receipt, and verifies nothing: see `signedBySite`.
 * @throws ZferryError `statement-malformed`, `signature-malformed`, `format-unsupported`
 */
export const parseReceipt = (bytes: Uint8Array, name: string): Statement<Receipt> =>
  parseStatement(receiptSchema, "receipt", bytes, name);

/** Whether a receipt says what was later than what another says. The site's clock may have been set back; what it did is not undone. */
export const isLater = (receipt: Receipt, than: Receipt): boolean =>
  receipt.events !== than.events ? receipt.events > than.events : receipt.made > than.made;

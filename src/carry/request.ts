import * as v from "valibot";
import { featureName, guid, keyId, objectId, productName, roleName } from "../bundle/manifest.js";
import { LIMITS } from "../bundle/layout.js";
import { siteName } from "../config.js";
import { ZferryError } from "../errors.js";
import { seconds } from "../install/state.js";
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
import type { ChainStart } from "./chain.js";

// formats/request.md: what a site has, so that a bundle can be made or fetched for it.

const MAX_GUIDS = 64;

const requestStream = table({
  role: roleName,
  guids: v.pipe(
    list(guid, MAX_GUIDS),
    v.description("Snapshots that a stream may start from, newest first; none where there is no dataset."),
  ),
  poolFeatures: v.pipe(
    list(featureName, 1024),
    v.description("Features that the pool has enabled, without feature@, sorted."),
  ),
  freeBytes: v.pipe(integer(0), v.description("What the dataset, or the one above it, may still take.")),
});

export const requestSchema = table({
  format: v.literal(STATEMENT_FORMAT),
  kind: v.picklist(["request"]),
  site: siteName,
  made: v.pipe(seconds, v.description("Seconds since 1970, by the site's clock.")),
  zferry: v.pipe(programVersion, v.description("The site's version of zferry.")),
  product: productName,
  installed: v.pipe(
    v.nullable(releaseOfBundle),
    v.description("Null where zferry installed nothing that is still there."),
  ),
  highestSequence: v.pipe(integer(0), v.description("Of all that the site accepted.")),
  streams: v.pipe(list(requestStream, LIMITS.streams), v.minLength(1), v.description("Sorted by role.")),
  root: v.pipe(
    v.nullable(table({ tree: v.nullable(objectId) })),
    v.description(
      "The tree of the release that / was made from, if it is known; null for a site without [root].",
    ),
  ),
  keys: v.pipe(
    table({
      threshold: integer(1, 16),
      counter: v.pipe(integer(0), v.description("Of the last change of keys by a release.")),
      trusted: v.pipe(list(keyId, 1024), v.description("Key ids, sorted.")),
    }),
    v.description("Whom the site believes."),
  ),
});
export type SiteRequest = v.InferOutput<typeof requestSchema>;

/** What is written is what can be read. */
export function encodeRequest(request: SiteRequest, key: SecretKey | undefined): Uint8Array {
  const bytes = encodeStatement(request, key);
  parseRequest(bytes, "of this site");
  return bytes;
}

/**
 * Reads a request, and verifies nothing: see `signedBySite`.
 * @throws ZferryError `statement-malformed`, `signature-malformed`, `format-unsupported`
 */
export function parseRequest(bytes: Uint8Array, name: string): Statement<SiteRequest> {
  const statement = parseStatement(requestSchema, "request", bytes, name);
  const { streams, keys } = statement.value;
  const lists = {
    streams: streams.map(({ role }) => role),
    "keys.trusted": keys.trusted,
    ...Object.fromEntries(streams.map(({ role, poolFeatures }) => [`poolFeatures of ${role}`, poolFeatures])),
  };
  for (const [field, names] of Object.entries(lists)) {
    if (names.some((each, index) => index > 0 && (names[index - 1] as string) >= each)) {
      throw new ZferryError("statement-malformed", `request ${name}: ${field}: is not sorted`, {
        details: { file: name },
      });
    }
  }
  return statement;
}

/** What a chain for the site starts from. The bundles that it accepted are not in a request, but for the installed one. */
export const startOfRequest = ({
  product,
  installed,
  highestSequence,
  streams,
  root,
}: SiteRequest): ChainStart => ({
  product,
  installed: installed ?? undefined,
  highestSequence,
  accepted: new Set(installed === null ? [] : [installed.identity]),
  streams: new Map(streams.map(({ role, guids }) => [role, guids])),
  tree: root?.tree ?? null,
});

/** A release of a build host, as a base or target of a bundle for a site. */
export interface Candidate {
  readonly name: string;
  readonly sequence: number;
  /** Of the snapshots of its streams' datasets, by role; a role without one is not there. */
  readonly guids: ReadonlyMap<string, string>;
  readonly tree: string;
}

/**
 * The base of a bundle for a site: the newest release before the target that the site has.
 * @param roles of the streams that the bundle will have
 * @returns undefined for a site that has nothing yet: a full bundle
 * @throws ZferryError `product-mismatch`, `sequence-mismatch`, `not-configured`, `base-missing`
 */
export function baseFor(
  request: SiteRequest,
  product: string,
  roles: readonly string[],
  releases: readonly Candidate[],
  target: Candidate,
): Candidate | undefined {
  const { site } = request;
  if (request.product !== product) {
    throw new ZferryError(
      "product-mismatch",
      `site ${site} has product ${request.product}, this host builds ${product}`,
      { details: { expected: product, found: request.product } },
    );
  }
  const guidsOf = new Map(request.streams.map(({ role, guids }) => [role, guids]));
  const missing = roles.filter((role) => !guidsOf.has(role));
  if (missing.length > 0 || request.root === null) {
    const what = missing.length > 0 ? `no dataset for stream ${missing.join(", ")}` : "no [root]";
    throw new ZferryError("not-configured", `site ${site} has ${what}, and release ${target.name} has one`, {
      hint: "add it to the site's configuration, and have a new request made",
    });
  }
  const has = (release: Candidate): boolean =>
    roles.every((role) => guidsOf.get(role)?.includes(release.guids.get(role) ?? "")) &&
    (request.root?.tree == null || request.root.tree === release.tree);
  if (has(target) || request.installed?.sequence === target.sequence) {
    throw new ZferryError("sequence-mismatch", `site ${site} has release ${target.name} already`, {
      details: { found: target.sequence, accepted: request.highestSequence },
      hint: "there is nothing to make for it",
    });
  }
  if (target.sequence <= request.highestSequence) {
    throw new ZferryError(
      "sequence-mismatch",
      `release ${target.name} has sequence number ${target.sequence}, site ${site} has accepted ${request.highestSequence} already`,
      {
        details: { found: target.sequence, accepted: request.highestSequence },
        hint: "the site's own bundle of it leads forward again; or make a newer release",
      },
    );
  }
  const base = releases.filter((each) => each.sequence < target.sequence && has(each)).at(-1);
  if (base !== undefined) return base;
  if (roles.every((role) => guidsOf.get(role)?.length === 0)) return undefined;
  const found = roles.map((role) => `${role} at guid ${guidsOf.get(role)?.[0] ?? "none"}`).join(", ");
  throw new ZferryError(
    "base-missing",
    `site ${site} has ${found}${request.root.tree === null ? "" : ` and / of tree ${request.root.tree}`}, which no release before ${target.name} here has`,
    {
      details: { site, found },
      hint: `its release is ${request.installed?.name ?? "not known"}: was that made on this host, and are its snapshots still there?`,
    },
  );
}

/** @throws ZferryError `dataset-unsuitable` when the site's pool cannot take a stream that needs these features */
export function requireReceivable(
  { site, streams }: SiteRequest,
  role: string,
  needed: readonly string[],
): void {
  const enabled = new Set(streams.find((stream) => stream.role === role)?.poolFeatures);
  const missing = needed.filter((feature) => !enabled.has(feature));
  if (missing.length === 0) return;
  throw new ZferryError(
    "dataset-unsuitable",
    `the pool of site ${site} for stream ${role} does not have the features ${missing.join(", ")} enabled`,
    { details: { site, role, missing }, hint: "enable them there (zpool set), and have a new request made" },
  );
}

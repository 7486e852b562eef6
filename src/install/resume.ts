import type { ManifestStream } from "../bundle/manifest.js";
import { ZferryError } from "../errors.js";
import type { ResumePoint, ResumeToken } from "../stream/resume-token.js";

const guidsOf = ({ base, target }: ManifestStream): [from: string, to: string] => [
  base?.guid ?? "0",
  target.guid,
];

/**
 * The one of a bundle's streams whose receive was interrupted.
 * @throws ZferryError `base-mismatch` when it was another one's
 */
export function streamOfToken(
  streams: readonly ManifestStream[],
  { fromguid, toguid }: ResumeToken,
): ManifestStream {
  const wanted = [String(fromguid), String(toguid)];
  const found = streams.find((stream) => guidsOf(stream).join() === wanted.join());
  if (found !== undefined) return found;
  const all = streams.map((stream) => `${stream.role} leads from ${guidsOf(stream).join(" to ")}`);
  throw new ZferryError(
    "base-mismatch",
    `the token is of a receive from guid ${wanted.join(" to ")}, stream ${all.join(", ")}`,
    {
      details: { wanted, found: streams.flatMap(guidsOf) },
      hint: "the bundle whose receive was interrupted has the rest of it",
    },
  );
}

/** The chunks that a resuming stream is made from: that of BEGIN, those from the resume point on, that of END. */
export function chunksFrom({ chunks }: ManifestStream, { object }: ResumePoint): number[] {
  const first = chunks.findIndex(({ largestObject }) => BigInt(largestObject) >= object);
  const from = first === -1 ? chunks.length - 1 : first;
  return [...chunks.keys()].filter((index) => index === 0 || index >= from);
}

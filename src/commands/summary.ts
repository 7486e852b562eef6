import { VerifiedBundle, type Bundle } from "../bundle/reader.js";
import type { Manifest, ManifestStream } from "../bundle/manifest.js";

/** For commander: an option that can be given several times. */
export const repeatable = (value: string, previous: readonly string[] = []): readonly string[] => [
  ...previous,
  value,
];

/** "R1 (guid 12…)", "guid 12…" or "nothing" */
export const describeBase = ({ base }: ManifestStream): string => {
  if (base === undefined) return "nothing";
  return base.snapshot === undefined ? `guid ${base.guid}` : `${base.snapshot} (guid ${base.guid})`;
};

/** "usr from R1 (guid 12…) to R2 (guid 34…)" */
export const describeStreams = ({ streams }: Manifest): string =>
  streams
    .map((stream) => {
      const { role, target } = stream;
      return `${role} from ${describeBase(stream)} to ${target.snapshot} (guid ${target.guid})`;
    })
    .join(", ");

/** What `verify --json` and `inspect --json` have in common. formats/manifest.md has the fields of `manifest`. */
export const summaryOf = (bundle: Bundle): object => ({
  file: bundle.name,
  bytes: bundle.size,
  identity: bundle.identity,
  signers:
    bundle instanceof VerifiedBundle ? bundle.signers : bundle.signatures.map(({ keyId }) => ({ keyId })),
  manifest: bundle.manifest,
});

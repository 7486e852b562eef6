import type { Manifest } from "../bundle/manifest.js";
import { ZferryError } from "../errors.js";
import { formatTime } from "../report.js";
import { acceptedBy, type SiteState } from "./state.js";

/** What somebody at the site allowed by name, against what the site would decide. */
export interface Exceptions {
  /** The sequence number of a release that may be installed though the site has had a newer one. */
  readonly allowDowngrade?: number | undefined;
  /** The sequence number of a release that may be installed though it expired. */
  readonly allowExpired?: number | undefined;
  /** A release may be from a time that the clock has not reached. */
  readonly acceptTime?: boolean | undefined;
}

const DAY = 86_400;

/**
 * Whether this site may take this bundle at all. formats/state.md, What a site takes
 * @param identity SHA-256 of the bundle's `SHA256SUMS`
 * @throws ZferryError `product-mismatch`, `sequence-mismatch`, `bundle-expired`, `time-ahead`
 */
export function checkRelease(
  { product, release, created, expires }: Pick<Manifest, "product" | "release" | "created" | "expires">,
  identity: string,
  siteProduct: string,
  state: SiteState | undefined,
  now: Date,
  exceptions: Exceptions = {},
): void {
  if (product !== siteProduct) {
    throw new ZferryError(
      "product-mismatch",
      `the bundle is for product ${product}, this site has ${siteProduct}`,
      {
        details: { expected: siteProduct, found: product },
      },
    );
  }
  if (state !== undefined) requireProduct(state, siteProduct);

  const { name, sequence } = release;
  const accepted = state?.highestSequence ?? 0;
  const again = acceptedBy(state).has(identity);
  if (sequence <= accepted && !again && exceptions.allowDowngrade !== sequence) {
    throw new ZferryError(
      "sequence-mismatch",
      `release ${name} has sequence number ${sequence}, this site has accepted ${accepted} already`,
      {
        details: { found: sequence, accepted },
        hint: `if you want this older release: --allow-downgrade ${sequence}`,
      },
    );
  }

  const clock = Math.floor(now.getTime() / 1000);
  if (created > clock + DAY && !again && exceptions.acceptTime !== true) {
    throw new ZferryError(
      "time-ahead",
      `release ${name} was made at ${formatTime(created)}, more than a day after this machine's ${formatTime(clock)}`,
      {
        details: { created, clock },
        hint: "set the clock; or, if the release's time is right, --accept-time makes it this site's time for good",
      },
    );
  }
  // A clock that was set back must not bring an old bundle to life again.
  const time = siteTime(state, clock);
  if (expires !== undefined && expires < time && exceptions.allowExpired !== sequence) {
    throw new ZferryError(
      "bundle-expired",
      `release ${name} expired at ${formatTime(expires)}, it is ${formatTime(time)} here`,
      {
        details: { expires, time },
        hint: `ask for a newer bundle, and see whether the clock is right; in spite of it: --allow-expired ${sequence}`,
      },
    );
  }
}

/** Seconds since 1970: the latest of the clock and of every release that was installed. */
const siteTime = (state: SiteState | undefined, clock: number): number =>
  Math.max(clock, ...(state?.installations ?? []).map(({ created }) => created));

/** @throws ZferryError `product-mismatch` when the state is of a site of another product */
export function requireProduct(state: SiteState, siteProduct: string): void {
  if (state.product === siteProduct) return;
  throw new ZferryError(
    "product-mismatch",
    `this site had product ${state.product}, its configuration says ${siteProduct}`,
    { details: { expected: state.product, found: siteProduct } },
  );
}

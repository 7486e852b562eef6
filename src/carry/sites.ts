import { mkdirSync, readdirSync } from "node:fs";
import { join } from "node:path";
import type { BuildConfig } from "../config.js";
import { ofFile, systemCode, ZferryError } from "../errors.js";
import { formatTime } from "../report.js";
import { guarded, writeFileDurably } from "../system/files.js";
import { isMissing, readPublicKey, readSmallFile } from "../system/key-files.js";
import { acquireLock } from "../system/lock.js";
import { verifySignature } from "../trust/minisign.js";
import { isLater, parseReceipt, type Receipt } from "./receipt.js";
import { parseRequest, type SiteRequest } from "./request.js";
import { MAX_STATEMENT_BYTES, type Statement } from "./statement.js";

// formats/receipt.md, On the build host: a folder with the newest receipt of each site.

type Sites = BuildConfig["sites"];

/**
 * Whether a statement is by the site that it names: each site's public key lies in a folder, by the site's name.
 * @returns the id of the key; undefined for one that is not signed, or where the site's key is not there
 * @throws ZferryError `signature-invalid` for another signature than the site's
 */
export async function signedBySite(
  statement: Statement<{ readonly site: string }>,
  { keys }: Pick<Sites, "keys">,
): Promise<string | undefined> {
  const { site } = statement.value;
  const path = join(keys, `${site}.pub`);
  const key = await readPublicKey(path).catch((error: unknown) => {
    if (isMissing(error)) return undefined;
    throw error;
  });
  if (key === undefined || statement.signature === undefined) return undefined;
  return (await verifySignature(key, statement.signature, statement.message)).keyId;
}

/** What a request must be signed with: the key of a file, or that of its site in the folder of a build host. */
export type RequestSigner = { readonly keyFile: string } | Pick<Sites, "keys">;

const DAY_SECONDS = 86_400;
/** After so long a site may well have had another bundle. */
const OLD_DAYS = 30;

/**
 * Reads the request that a bundle is made or fetched for.
 * @param signer undefined where no site's key is known
 * @returns also what speaks against believing it
 * @throws ZferryError `statement-malformed`, `signature-malformed`, `signature-invalid`, `format-unsupported`, `io-failed`; with a key
 * that is named `signature-missing`
 */
export async function readRequest(
  path: string,
  signer: RequestSigner | undefined,
  now: Date,
): Promise<{ readonly request: SiteRequest; readonly warnings: readonly string[] }> {
  const statement = parseRequest(await readStatementFile(path, "request"), path);
  const { value: request, message, signature } = statement;
  const warnings: string[] = [];
  try {
    if (signer !== undefined && "keyFile" in signer) {
      if (signature === undefined) {
        throw new ZferryError("signature-missing", `request ${path} of site ${request.site} is not signed`, {
          details: { file: path, site: request.site },
          hint: "a site signs what it says when its configuration names a key under [site]",
        });
      }
      await verifySignature(await readPublicKey(signer.keyFile), signature, message);
    } else if (signer === undefined || (await signedBySite(statement, signer)) === undefined) {
      warnings.push(`${path} is not signed by a known key of site ${request.site}: anybody may have made it`);
    }
  } catch (error) {
    throw ofFile(error, `request ${path}`);
  }
  const age = Math.floor(now.getTime() / 1000) - request.made;
  const at = `${path} was made at ${formatTime(request.made)}`;
  if (age > OLD_DAYS * DAY_SECONDS) {
    warnings.push(
      `${at}, ${Math.floor(age / DAY_SECONDS)} days ago: the site may have another release by now`,
    );
  } else if (age < -DAY_SECONDS) {
    warnings.push(`${at}, which is yet to come: the site's clock is wrong, or this one`);
  }
  return { request, warnings };
}

/** Where a site's newest receipt is kept. */
export const placeOf = (site: string, { sites }: Pick<BuildConfig, "sites">): string =>
  join(sites.receipts, `${site}.receipt`);

export const readStatementFile = (path: string, what: string): Promise<Buffer> =>
  readSmallFile(path, what, MAX_STATEMENT_BYTES, "statement-malformed");

/** A receipt that was verified, and may be taken. */
export interface CheckedReceipt {
  readonly path: string;
  readonly receipt: Receipt;
  readonly bytes: Buffer;
}

/**
 * Verifies a receipt that is to be taken.
 * @throws ZferryError `statement-malformed`, `signature-missing`, `signature-invalid`, `product-mismatch`, with the file and the site
 */
export async function checkReceipt(
  path: string,
  { product, sites }: Pick<BuildConfig, "product" | "sites">,
): Promise<CheckedReceipt> {
  const bytes = await readStatementFile(path, "receipt");
  const statement = parseReceipt(bytes, path);
  const { value: receipt } = statement;
  if (receipt.product !== product) {
    throw new ZferryError(
      "product-mismatch",
      `receipt ${path} is of a site of product ${receipt.product}, this host builds ${product}`,
      { details: { expected: product, found: receipt.product } },
    );
  }
  const signer = await signedBySite(statement, sites).catch((error: unknown) => {
    throw ofFile(error, `receipt ${path} of site ${receipt.site}`);
  });
  if (signer === undefined) {
    const why = statement.signature === undefined ? "is not signed" : "is by a site whose key is not known";
    throw new ZferryError("signature-missing", `receipt ${path} of site ${receipt.site} ${why}`, {
      details: { file: path, site: receipt.site },
      hint:
        statement.signature === undefined
          ? "a site signs what it says when its configuration names a key under [site]"
          : `if you trust it, put its public key into ${join(sites.keys, `${receipt.site}.pub`)}`,
    });
  }
  return { path, receipt, bytes };
}

/**
 * Takes a receipt into the folder, instead of an older one of the same site.
 * @returns whether it was taken: false where the one that is there is as new, or newer
 * @throws ZferryError `site-busy`, `statement-malformed` for the one that is there
 */
export async function takeReceipt(
  { receipt, bytes }: CheckedReceipt,
  { sites }: Pick<BuildConfig, "sites">,
): Promise<boolean> {
  guarded(sites.receipts, () => mkdirSync(sites.receipts, { recursive: true, mode: 0o755 }));
  const release = await acquireLock(join(sites.receipts, "lock"), {
    message: `${sites.receipts}: another process takes receipts there`,
    hint: "run the same command again",
  });
  try {
    const place = placeOf(receipt.site, { sites });
    const before = await readSmallFile(place, "receipt", MAX_STATEMENT_BYTES).catch((error: unknown) => {
      if (isMissing(error)) return undefined;
      throw error;
    });
    if (before !== undefined && !isLater(receipt, parseKept(before, place).value)) return false;
    writeFileDurably(place, bytes, 0o644);
    return true;
  } finally {
    await release();
  }
}

function parseKept(bytes: Uint8Array, place: string): Statement<Receipt> {
  try {
    return parseReceipt(bytes, place);
  } catch (error) {
    throw ofFile(error, place, `if it cannot be mended, remove ${place}`);
  }
}

/** A site as its newest receipt tells it; `fault` says why that does not count any more. */
export interface KnownSite {
  /** By the name of the file. */
  readonly site: string;
  /** Undefined where the file is no receipt. */
  readonly receipt: Receipt | undefined;
  readonly fault: string | undefined;
}

/**
 * The newest receipt of each site, by its name. Each is verified again: a key may have been taken away.
 * @throws ZferryError `io-failed` for the folder; what is wrong with a file of it is that one's `fault`
 */
export async function listSites({ sites }: Pick<BuildConfig, "sites">): Promise<KnownSite[]> {
  const known: KnownSite[] = [];
  for (const name of receiptsIn(sites.receipts)) {
    const path = join(sites.receipts, name);
    const site = name.slice(0, -".receipt".length);
    let receipt: Receipt | undefined;
    let fault: string | undefined;
    try {
      const statement = parseReceipt(await readStatementFile(path, "receipt"), path);
      receipt = statement.value;
      if ((await signedBySite(statement, sites)) === undefined) fault = "its key is not known any more";
      if (receipt.site !== site) fault = `${path} is of site ${receipt.site}`;
    } catch (error) {
      if (!(error instanceof ZferryError)) throw error;
      fault = error.message;
    }
    known.push({ site, receipt, fault });
  }
  return known;
}

function receiptsIn(folder: string): string[] {
  return guarded(folder, () => {
    try {
      return readdirSync(folder)
        .filter((name) => name.endsWith(".receipt") && !name.startsWith("."))
        .sort();
    } catch (error) {
      if (systemCode(error) === "ENOENT") return [];
      throw error;
    }
  });
}

/**
 * Everything that zferry refuses or fails at has one of these codes; each code has one exit status.
 * formats/exit-status.md is tested against this table.
 */
export const EXIT_STATUS = {
  unexpected: 1,
  usage: 2,
  "archive-malformed": 10,
  "sums-malformed": 10,
  "manifest-malformed": 10,
  "metadata-malformed": 10,
  "stream-malformed": 10,
  "token-malformed": 10,
  "frame-malformed": 10,
  "patch-malformed": 10,
  "key-malformed": 10,
  "signature-malformed": 10,
  "journal-malformed": 10,
  "config-malformed": 10,
  "statement-malformed": 10,
  "index-malformed": 10,
  "format-unsupported": 10,
  "stream-unsupported": 10,
  "signature-missing": 11,
  "signature-invalid": 11,
  "password-wrong": 11,
  "bundle-expired": 11,
  "index-expired": 11,
  "index-rolled-back": 11,
  "time-ahead": 11,
  "keys-too-few": 11,
  "key-revoked": 11,
  "content-mismatch": 12,
  "bundle-truncated": 12,
  "product-mismatch": 13,
  "sequence-mismatch": 13,
  "base-missing": 13,
  "base-modified": 13,
  "base-mismatch": 13,
  "chain-missing": 13,
  "zfs-failed": 14,
  "git-failed": 15,
  "merge-conflict": 15,
  "io-failed": 16,
  "volume-missing": 16,
  "copy-damaged": 16,
  "download-failed": 16,
  "no-space": 16,
  "output-exists": 17,
  "release-exists": 17,
  "signature-exists": 17,
  "not-configured": 17,
  "not-permitted": 17,
  "worktree-dirty": 17,
  "site-busy": 17,
  "dataset-in-use": 17,
  "dataset-unsuitable": 17,
  "install-pending": 17,
  "rollback-impossible": 17,
  "loss-not-agreed": 17,
  "secret-found": 17,
  "environment-missing": 17,
  "environment-exists": 17,
  "environment-incomplete": 17,
  "root-has-data": 17,
  interrupted: 130,
} as const;

export type ErrorCode = keyof typeof EXIT_STATUS;

/** What a message names, as fields for `--json`: a member, an offset in bytes, both values. */
export type ErrorDetails = Readonly<Record<string, string | number | readonly string[]>>;

const MAX_MESSAGE = 2_000;

/** Names in a message come from bundles and from other programs, and may have any length. */
const bounded = (message: string): string =>
  message.length <= MAX_MESSAGE
    ? message
    : `${message.slice(0, MAX_MESSAGE)}… (${message.length - MAX_MESSAGE} characters more)`;

/** What node gives no name: it says `Unknown system error -122` of a quota that is used up, which is ZFS's way to say it is full. */
const UNNAMED: Readonly<Record<number, string>> = { [-122]: "EDQUOT" };

/** The name of a system call's error, such as `ENOENT`; undefined for any other error. */
export function systemCode(error: unknown): string | undefined {
  if (!(error instanceof Error)) return undefined;
  const { code, errno } = error as NodeJS.ErrnoException;
  return (errno === undefined ? undefined : UNNAMED[errno]) ?? (typeof code === "string" ? code : undefined);
}

/** Whether a disk or quota is full. */
export const isFull = (code: string | undefined): boolean => code === "ENOSPC" || code === "EDQUOT";

/** Another process of ours failed, and told why: only its exit status is left to be passed on. */
export class ToldElsewhere extends Error {
  readonly status: number;

  constructor(status: number) {
    super(`exit status ${status}`);
    this.status = status;
  }
}

/**
 * The one error class. `message` is lower case without a final period and names the object and both values;
 * `hint` says on a line of its own what to do.
 */
export class ZferryError extends Error {
  override readonly name = "ZferryError";
  readonly code: ErrorCode;
  readonly details: ErrorDetails;
  readonly hint: string | undefined;
  /** What is wrong besides, where more than the first fault was looked for. */
  readonly also: readonly ZferryError[];

  constructor(
    code: ErrorCode,
    message: string,
    options: {
      details?: ErrorDetails;
      hint?: string | undefined;
      also?: readonly ZferryError[];
      cause?: unknown;
    } = {},
  ) {
    super(bounded(message), options.cause === undefined ? {} : { cause: options.cause });
    this.code = code;
    this.details = options.details ?? {};
    this.hint = options.hint;
    this.also = options.also ?? [];
  }
}

/** Throws the first of several faults, with the others besides; nothing where there is none. What is said twice is one fault. */
export function throwAll(faults: readonly ZferryError[]): void {
  const all = faults.flatMap((fault) => [fault, ...fault.also]);
  const isFirst = ({ message }: ZferryError, index: number): boolean =>
    all.findIndex((each) => each.message === message) === index;
  const [first, ...others] = all.filter(isFirst);
  if (first === undefined) return;
  const { code, message, details, hint } = first;
  throw new ZferryError(code, message, { details, hint, also: others, cause: first });
}

/** The same fault, and what is wrong besides, with every text of it changed. */
export function reworded(error: ZferryError, change: (text: string) => string): ZferryError {
  const details = Object.entries(error.details).map(([name, value]): [string, ErrorDetails[string]] => {
    if (typeof value === "number") return [name, value];
    return [name, typeof value === "string" ? change(value) : value.map(change)];
  });
  return new ZferryError(error.code, change(error.message), {
    details: Object.fromEntries(details),
    hint: error.hint === undefined ? undefined : change(error.hint),
    also: error.also.map((fault) => reworded(fault, change)),
    cause: error,
  });
}

/** Collects what stands against an install, so that all of it can be told at once. */
export class Obstacles {
  readonly #found: ZferryError[] = [];

  /** The result of a check, or nothing when it found an obstacle. */
  async unless<Result>(check: () => Promise<Result>): Promise<Result | undefined> {
    try {
      return await check();
    } catch (error) {
      if (!(error instanceof ZferryError) || error.code === "interrupted") throw error;
      this.add(error);
      return undefined;
    }
  }

  add(error: ZferryError): void {
    this.#found.push(error);
  }

  get isEmpty(): boolean {
    return this.#found.length === 0;
  }

  /** @throws ZferryError the first that was found, with all the others */
  throwAny(): void {
    throwAll(this.#found);
  }
}

/**
 * The same fault, with the file's name, where several files could have it.
 * @param hint instead of its own
 */
export function ofFile(error: unknown, path: string, hint?: string): unknown {
  if (!(error instanceof ZferryError) || error.code === "interrupted") return error;
  const { code, message, details, also } = error;
  return new ZferryError(code, message.includes(path) ? message : `${path}: ${message}`, {
    details,
    hint: hint ?? error.hint,
    also,
    cause: error,
  });
}

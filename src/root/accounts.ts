/** The users or groups of an `/etc/passwd` or `/etc/group`, both ways. */
export interface Accounts {
  readonly idOf: ReadonlyMap<string, number>;
  readonly nameOf: ReadonlyMap<number, string>;
}

export const ACCOUNT_NAME = /^[^\p{Cc}\s:/]{1,255}$/u;
export const MAX_ACCOUNT_ID = 2 ** 32 - 2;

/** Reads name and number of every line that has both; as the C library does, the first line for either one counts. */
export function parseAccounts(bytes: Uint8Array): Accounts {
  const idOf = new Map<string, number>();
  const nameOf = new Map<number, string>();
  for (const line of Buffer.from(bytes).toString("utf8").split("\n")) {
    const [name = "", , digits = ""] = line.split(":");
    const id = /^\d{1,10}$/.test(digits) ? Number(digits) : Infinity;
    if (!ACCOUNT_NAME.test(name) || name.includes("\ufffd") || id > MAX_ACCOUNT_ID) continue;
    if (!idOf.has(name)) idOf.set(name, id);
    if (!nameOf.has(id)) nameOf.set(id, name);
  }
  return { idOf, nameOf };
}

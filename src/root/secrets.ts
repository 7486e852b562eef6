import { ZferryError } from "../errors.js";
import { rawPath, showPath, type RawPath } from "../raw-path.js";
import { readBlobs, type Git, type TreeFile } from "../system/git.js";
import { findPattern, parsePattern, type PathPattern } from "./path-pattern.js";

// formats/root.md, What never travels

/** What a build host has decided itself about what may travel. */
export interface SecretRules {
  /** Never carried, whatever it is. */
  readonly deny: readonly PathPattern[];
  /** Carried, whatever else is said of it. */
  readonly allow: readonly PathPattern[];
  /** Files that hold the signing key and its passphrase, relative to `/`. */
  readonly own: readonly string[];
}

/** A path whose content would travel and must not. */
export interface Secret {
  readonly path: RawPath;
  /** What it is, as in "an age secret key". */
  readonly what: string;
  /** Which release has it. What only the base has was changed or deleted, and its old content travels. */
  readonly in: "base" | "target" | "both";
}

/** How much of a file is looked at, in bytes. */
const LOOKED_AT = 64 << 10;

interface NamedSecrets extends PathPattern {
  readonly what: string;
}

const named = (what: string, ...patterns: string[]): NamedSecrets[] =>
  patterns.map((pattern) => ({ what, ...parsePattern(pattern) }));

/** Secrets and machine identity by their places. Regular files that are not empty. */
export const BY_NAME: readonly NamedSecrets[] = [
  ...named("passwords", "/etc/shadow", "/etc/shadow-", "/etc/gshadow", "/etc/gshadow-"),
  ...named("passwords", "/etc/security/opasswd", ".git-credentials", ".pgpass"),
  ...named("an SSH host key", "/etc/ssh/ssh_host_*", "/etc/dropbear/dropbear_*_host_key"),
  ...named("the machine's id", "/etc/machine-id", "/var/lib/dbus/machine-id", "/etc/hostid"),
  ...named("the machine's id", "/etc/iscsi/initiatorname.iscsi", "/etc/nvme/hostid", "/etc/nvme/hostnqn"),
  ...named("the state of the machine's clock", "/etc/adjtime", "/var/lib/systemd/timesync/clock"),
  ...named("the machine's pools", "/etc/zfs/zpool.cache"),
  ...named("a random seed", "/var/lib/**/random-seed", "**/loader/random-seed", "/var/lib/seedrng/"),
  ...named("the machine's credentials", "/var/lib/systemd/credential.secret"),
  ...named("the machine's credentials", "/etc/credstore/", "/etc/credstore.encrypted/"),
  ...named("the machine's account", "/var/lib/samba/private/"),
  ...named("a private key", "id_rsa", "id_dsa", "id_ecdsa", "id_ed25519", "*.ppk", "*.p12", "*.pfx"),
  ...named("a private key", "/etc/ssl/private/", "/etc/pki/tls/private/", "hs_ed25519_secret_key"),
  ...named("a private key", "MOK.priv", "/var/lib/dkms/mok.key", "/var/lib/sbctl/keys/"),
  ...named("an OpenPGP private key", "private-keys-v1.d/", "secring.gpg"),
  ...named("a Kerberos key", "*.keytab"),
  ...named("a disk's key", "crypto_keyfile.bin", "/etc/cryptsetup-keys.d/", "/etc/luks-keys/"),
  ...named("a disk's key", "/etc/zfs/*.key", "/etc/zfs/keys/"),
  ...named("the key of a wireless network", "/var/lib/iwd/*.psk", "/var/lib/iwd/*.8021x"),
];

interface Recognizer {
  readonly what: string;
  /** Where such a thing can be; everywhere if absent. */
  readonly within?: readonly PathPattern[];
  /** The first `LOOKED_AT` bytes, each a character. */
  readonly test: (content: string) => boolean;
}

const containing = (what: string, pattern: RegExp, ...within: string[]): Recognizer => ({
  what,
  test: (content) => pattern.test(content),
  ...(within.length === 0 ? {} : { within: within.map(parsePattern) }),
});

// Lines that begin with white space or a quotation mark, as in YAML and JSON, which has \n for a new line. A line
// of the key must follow its headers: a text that speaks of such keys has none.
const PEM_PRIVATE_KEY = new RegExp(
  /(?:^|["'\s])-----BEGIN (?:[A-Z0-9]{1,20} ){0,3}PRIVATE KEY(?: BLOCK)?-----[ \t]*(?:\r?\n|\\n)/.source +
    /(?:[ \t]*(?:[A-Za-z-]{1,30}: [^\n]{0,200})?(?:\r?\n|\\n)){0,10}?[ \t]*[A-Za-z0-9+/]{32}/.source,
  "m",
);

const HASH = /\$(?:y|gy|7|6|5|1|apr1|sha1|md5|2[abxy]?|argon2(?:id|i|d))[$,][^:\s]{12,}/.source;
const DES_HASH = /[./A-Za-z0-9]{13}/.source;

/** Secrets by their content: certain enough to give no false alarm for what distributions have in /etc. */
const BY_CONTENT: readonly Recognizer[] = [
  containing("a PEM private key", PEM_PRIVATE_KEY),
  containing("an SSH private key", /^---- BEGIN SSH2 ENCRYPTED PRIVATE KEY ----\r?$/m),
  containing("a PuTTY private key", /^PuTTY-User-Key-File-[1-9]: /),
  containing("an OpenVPN key", /^[ \t]*-----BEGIN OpenVPN (?:Static key V1|tls-crypt-v2 \w+ key)-----\r?\n/m),
  containing("a minisign secret key", /^RW(?:RTY0Iy|QAAEIy)[A-Za-z0-9+/]{203}=\r?$/m),
  containing("an age secret key", /^AGE-(?:SECRET-KEY|PLUGIN-[A-Z0-9]+)-(?:[A-Z]+-)?1[02-9AC-HJ-NP-Z]{20,}/m),
  containing(
    "a WireGuard key",
    /^[ \t]*(?:PrivateKey|PresharedKey|private-key|preshared-key)[ \t]*=[ \t]*[A-Za-z0-9+/]{43}=[ \t]*\r?$/m,
  ),
  containing(
    "an OpenPGP private key",
    /^(?:[A-Za-z-]+: [^\n]*\n)*Key: \((?:protected-)?private-key|^\((?:11:|21:protected-)private-key\(/,
  ),
  containing("a DNSSEC private key", /^Private-key-format: v1\.\d\r?$/m),
  containing("a DNS key", /(?:^|[{;])[ \t]*secret[ \t]+"[A-Za-z0-9+/]{16,}={0,2}"[ \t]*;/m),
  containing("password hashes", new RegExp(`^[^:\\s#]{1,255}:!{0,2}${HASH}(?::|\\r?$)`, "m")),
  containing("password hashes", new RegExp(`^[^:\\s#]{1,255}:!{0,2}${DES_HASH}:\\d*:\\d*:`, "m")),
  containing("a password hash", /\bgrub\.pbkdf2\.sha\d+\.\d+\.[0-9A-Fa-f]{32}/),
  containing(
    "the key of a network",
    /^(?:psk|password|leap-password|wep-key[0-3]|private-key-password|sae-password)=[^\s]/m,
    "system-connections/",
  ),
  containing(
    "the key of a wireless network",
    /^[ \t]*network[ \t]*=[ \t]*\{[^}]{0,4000}?^[ \t]*(?:psk|password|sae_password|wep_key[0-3]|private_key_passwd)[ \t]*=[ \t]*\S/m,
  ),
  containing("the key of a wireless network", /^(?:wpa_passphrase|wpa_psk|sae_password)=[^\s]/m),
  containing(
    "passwords",
    /^[ \t]*(?:"[^"\n]*"|[^\s#"]+)[ \t]+(?:"[^"\n]*"|[^\s#"]+)[ \t]+\S/m,
    "/etc/ppp/*-secrets",
  ),
  containing("passwords", /^[^#\n]*:[ \t]*(?:PSK|EAP|XAUTH|NTLM)[ \t]+\S/m, "*.secrets", "/etc/ipsec.d/"),
  containing("passwords", /^[^#\n]*\bpassword[ \t]+\S/m, ".netrc"),
  { what: "a Kerberos key", test: isKeytab },
];

/** A keytab of version 2: the length of an entry, the number of its components, its realm in ASCII. */
function isKeytab(content: string): boolean {
  if (!content.startsWith("\x05\x02")) return false;
  const bytes = Buffer.from(content.slice(0, 512), "latin1");
  if (bytes.length < 12) return false;
  const [length, components, realm] = [bytes.readInt32BE(2), bytes.readUInt16BE(6), bytes.readUInt16BE(8)];
  const name = bytes.toString("latin1", 10, 10 + realm);
  return length > realm && components >= 1 && components <= 16 && /^[!-~]{1,255}$/.test(name);
}

/** What a file of this content and path is, if it is a secret. */
const recognize = (content: string, path: RawPath): string | undefined =>
  BY_CONTENT.find(
    ({ within, test }) => (within === undefined || findPattern(within, path) !== undefined) && test(content),
  )?.what;

type Side = "base" | "target";

/**
 * Finds what must not travel among the files that differ between two releases: of such a file a bundle has the
 * content before and after. Links count only where they are denied.
 * @param before the files of the base; none for a full release
 */
export async function findSecrets(
  git: Git,
  before: ReadonlyMap<RawPath, TreeFile>,
  after: ReadonlyMap<RawPath, TreeFile>,
  rules: SecretRules,
): Promise<Secret[]> {
  const found = new Map<RawPath, { what: string; sides: Set<Side> }>();
  const add = (path: RawPath, what: string, side: Side): void => {
    const secret = found.get(path);
    if (secret === undefined) found.set(path, { what, sides: new Set([side]) });
    else secret.sides.add(side);
  };

  const own = new Set(rules.own.map((path) => rawPath(Buffer.from(path))));
  const unread = new Map<string, { path: RawPath; side: Side }[]>();
  for (const path of new Set([...before.keys(), ...after.keys()])) {
    const [base, target] = [before.get(path), after.get(path)];
    if ((base?.mode === target?.mode && base?.id === target?.id) || findPattern(rules.allow, path)) continue;
    const denied = own.has(path)
      ? "the signing key or its passphrase"
      : findPattern(rules.deny, path) && "denied by the configuration";
    const name = findPattern(BY_NAME, path)?.what;
    for (const [side, file] of [
      ["base", base],
      ["target", target],
    ] as const) {
      const what = denied ?? (isRegular(file) && file.id !== EMPTY_BLOB ? name : undefined);
      if (what !== undefined && file !== undefined) add(path, what, side);
      else if (isRegular(file) && file.id !== EMPTY_BLOB) {
        const paths = unread.get(file.id);
        if (paths === undefined) unread.set(file.id, [{ path, side }]);
        else paths.push({ path, side });
      }
    }
  }

  for await (const { id, pieces } of readBlobs(git, [...unread.keys()])) {
    const content = await readHead(pieces);
    for (const { path, side } of unread.get(id) ?? []) {
      const what = recognize(content, path);
      if (what !== undefined) add(path, what, side);
    }
  }
  return [...found]
    .sort(([a], [b]) => (a < b ? -1 : 1))
    .map(([path, { what, sides }]) => ({
      path,
      what,
      in: sides.size === 2 ? "both" : sides.has("base") ? "base" : "target",
    }));
}

const EMPTY_BLOB = "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391";

const isRegular = (file: TreeFile | undefined): file is TreeFile =>
  file?.mode === "100644" || file?.mode === "100755";

/** The first bytes of a file, as characters. */
async function readHead(pieces: AsyncIterable<Uint8Array> | Iterable<Uint8Array>): Promise<string> {
  const head: Uint8Array[] = [];
  let bytes = 0;
  for await (const piece of pieces) {
    head.push(piece.subarray(0, LOOKED_AT - bytes));
    bytes += piece.length;
    if (bytes >= LOOKED_AT) break;
  }
  return Buffer.concat(head).toString("latin1");
}

/** A secret as messages name it. */
export const describeSecret = ({ path, what, in: side }: Secret): string =>
  `${showPath(path)} (${what}${side === "base" ? ", as it was in the base" : ""})`;

/**
 * Refuses a release that would carry secrets, naming all of them.
 * @throws ZferryError `secret-found`
 */
export function refuseSecrets(secrets: readonly Secret[]): void {
  if (secrets.length === 0) return;
  const list = secrets.map(describeSecret);
  const hints = [
    ...(secrets.some(({ in: side }) => side === "target")
      ? [
          "take what is new out of git (git rm --cached, .gitignore), make another release, and create its bundle from the same base",
        ]
      : []),
    ...(secrets.some(({ in: side }) => side !== "target")
      ? [
          "a change or deletion carries what the base had: put it back as it was, or make that secret worthless",
        ]
      : []),
    "--allow-secret PATH carries it all the same (formats/root.md, What never travels)",
  ];
  throw new ZferryError("secret-found", `a bundle must not carry ${list.join(", ")}`, {
    details: { paths: secrets.map(({ path }) => showPath(path)), secrets: list },
    hint: hints.join("; "),
  });
}

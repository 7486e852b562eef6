import { execFileSync } from "node:child_process";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { parsePattern } from "../../src/root/path-pattern.js";
import { everything } from "./everything.js";
import { ACCOUNTS, BuildHost, edit, file, link, newFolder, sh, type Edits } from "./hosts.js";

const refusal = (paths: string[], code = "secret-found") => ({
  code,
  details: expect.objectContaining({ paths }) as unknown,
});

const fixture = (name: string): Buffer =>
  readFileSync(new URL(`../../fixtures/keys/${name}`, import.meta.url));

/** What a program writes into a new folder, by name. */
function made(command: string, name: string): Buffer {
  const folder = newFolder();
  execFileSync("/bin/sh", ["-euc", command], { cwd: folder, stdio: ["ignore", "pipe", "pipe"] });
  return readFileSync(join(folder, name));
}

const openssl = (args: string): Buffer => made(`openssl ${args} >key 2>errors`, "key");
const sshKey = (args: string, name = "k"): Buffer => made(`ssh-keygen -q -C me -f k ${args}`, name);

const KEY32 = Buffer.alloc(32, 7).toString("base64");
const SHA512 = `$6$saltsalt$${"x".repeat(86)}`;
const PEM = openssl("genpkey -algorithm ed25519").toString();

const keytab = (): Buffer => {
  const text = (value: string) => Buffer.concat([Buffer.of(0, value.length), Buffer.from(value)]);
  const entry = Buffer.concat([Buffer.of(0, 2), text("EXAMPLE.ORG"), text("host"), text("a.example.org")]);
  const length = Buffer.alloc(4);
  length.writeInt32BE(entry.length);
  return Buffer.concat([Buffer.of(5, 2), length, entry]);
};

const gpgKey = (): Buffer =>
  made(
    `home=$(mktemp -d); chmod 700 "$home"
     gpg --homedir "$home" --batch --quiet --pinentry-mode loopback --passphrase "" --quick-gen-key me@example.org ed25519 sign never
     cat "$home"/private-keys-v1.d/*.key >key; gpgconf --homedir "$home" --kill all; rm -rf "$home"`,
    "key",
  );

/** Content by an ordinary name, and what it is taken for. */
const SECRETS: Record<string, [what: string, content: () => string | Buffer, path?: string]> = {
  "PKCS #8": ["a PEM private key", () => PEM],
  "PKCS #8, encrypted": [
    "a PEM private key",
    () => openssl("genpkey -algorithm ed25519 -aes256 -pass pass:x"),
  ],
  "RSA, traditional": ["a PEM private key", () => openssl("genrsa -traditional 1024")],
  "RSA, traditional and encrypted, with its headers": [
    "a PEM private key",
    () => openssl("genrsa -traditional -aes256 -passout pass:x 1024"),
  ],
  "EC, after its parameters": ["a PEM private key", () => openssl("ecparam -name prime256v1 -genkey")],
  DSA: [
    "a PEM private key",
    () =>
      made(
        "openssl dsaparam -out p 1024 2>errors; openssl gendsa -out k p 2>errors; openssl pkey -in k -traditional >key",
        "key",
      ),
  ],
  "OpenSSH, ed25519": ["a PEM private key", () => sshKey("-t ed25519 -N ''")],
  "OpenSSH, encrypted": ["a PEM private key", () => sshKey("-t ecdsa -N secret")],
  "OpenSSH, in PEM": ["a PEM private key", () => sshKey("-t rsa -b 1024 -m PEM -N ''")],
  "a key after its certificate, with Windows' lines": [
    "a PEM private key",
    () => `-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n${PEM}`.replaceAll("\n", "\r\n"),
  ],
  "a key in YAML": ["a PEM private key", () => `tls:\n  key: |\n${PEM.replace(/^/gm, "    ")}\n`],
  "a key in JSON": ["a PEM private key", () => JSON.stringify({ private_key: PEM })],
  "a key in OpenVPN's configuration": ["a PEM private key", () => `client\n<key>\n${PEM}</key>\n`],
  "an exported OpenPGP key": [
    "a PEM private key",
    () => `-----BEGIN PGP PRIVATE KEY BLOCK-----\nVersion: 1\n\n${"lQOYBF".repeat(10)}\n`,
  ],
  "OpenPGP, as the agent keeps it": ["an OpenPGP private key", gpgKey],
  PuTTY: [
    "a PuTTY private key",
    () => "PuTTY-User-Key-File-3: ssh-ed25519\r\nEncryption: none\r\nComment: me\r\n",
  ],
  "OpenVPN, static": [
    "an OpenVPN key",
    () => `#\n-----BEGIN OpenVPN Static key V1-----\n${"0a".repeat(16)}\n`,
  ],
  "minisign and zferry, encrypted": ["a minisign secret key", () => fixture("encrypted.key")],
  "minisign and zferry, not encrypted": ["a minisign secret key", () => fixture("password-removed.key")],
  minisign: ["a minisign secret key", () => made("minisign -G -W -p p -s s >out", "s")],
  age: ["an age secret key", () => `# created: 2026-01-01\nAGE-SECRET-KEY-1${"QPZRY9X8GF".repeat(6)}\n`],
  "WireGuard, wg.conf": ["a WireGuard key", () => `[Interface]\nPrivateKey = ${KEY32}\n`],
  "WireGuard, systemd": [
    "a WireGuard key",
    () => `[NetDev]\nKind=wireguard\n[WireGuard]\nPrivateKey=${KEY32}\n`,
  ],
  DNSSEC: ["a DNSSEC private key", () => "Private-key-format: v1.3\nAlgorithm: 13\nPrivateKey: x\n"],
  rndc: ["a DNS key", () => `key "rndc" {\n\talgorithm hmac-sha256;\n\tsecret "${KEY32}";\n};\n`],
  "a copy of shadow": [
    "password hashes",
    () => `root:!:19000:0:99999:7:::\nme:${SHA512}:19000:0:99999:7:::\n`,
  ],
  "yescrypt, of a locked account": [
    "password hashes",
    () => `me:!$y$j9T$abcdefghijkl$${"x".repeat(43)}:19000:0:99999:7:::\n`,
  ],
  "a hash in passwd": ["password hashes", () => `me:${SHA512}:1000:1000::/home/me:/bin/sh\n`],
  "a DES hash": ["password hashes", () => "me:ab01FAX.bQRSU:19000:0:99999:7:::\n"],
  htpasswd: ["password hashes", () => "me:$apr1$saltsalt$abcdefghijklmnopqrstu.\n"],
  GRUB: ["a password hash", () => `password_pbkdf2 root grub.pbkdf2.sha512.10000.${"AB".repeat(64)}.CD\n`],
  NetworkManager: [
    "the key of a network",
    () => "[wifi-security]\nkey-mgmt=wpa-psk\npsk=correct horse\n",
    "etc/NetworkManager/system-connections/home.nmconnection",
  ],
  wpa_supplicant: [
    "the key of a wireless network",
    () => 'ctrl_interface=/run\nnetwork={\n\tssid="home"\n\tpsk="correct horse"\n}\n',
  ],
  hostapd: ["the key of a wireless network", () => "ssid=x\nwpa_passphrase=correct horse\n"],
  PPP: ["passwords", () => '# client server secret\n"me" * "secret" *\n', "etc/ppp/chap-secrets"],
  IPsec: ["passwords", () => '# keys\n10.0.0.1 %any : PSK "secret"\n', "etc/ipsec.secrets"],
  netrc: ["passwords", () => "machine example.org login me password secret\n", "root/.netrc"],
  keytab: ["a Kerberos key", keytab],
};

/** What is found in these files when a first release has them. */
async function found(edits: Edits, rules = {}): Promise<string[]> {
  const host = new BuildHost();
  host.release("r1", edits);
  return host.part(null, "r1", host.root, rules).then(
    () => [],
    (error: { code?: string; details?: { secrets: string[] } }) => {
      if (error.code !== "secret-found") throw error;
      return error.details?.secrets ?? [];
    },
  );
}

describe("a secret is recognised by its content", () => {
  it.each(Object.entries(SECRETS))("%s", async (_, [what, content, path = "etc/ordinary"]) => {
    expect(await found({ [path]: content() })).toEqual([`${path} (${what})`]);
  });

  it("only at the beginning of a large file", async () => {
    const early = Buffer.concat([Buffer.alloc(60 << 10, "x\n"), Buffer.from(PEM), Buffer.alloc(40 << 20)]);
    const late = Buffer.concat([Buffer.alloc(64 << 10, "x\n"), Buffer.from(PEM)]);
    expect(await found({ "etc/early": early, "etc/late": late })).toEqual(["etc/early (a PEM private key)"]);
  });
});

describe("a secret is recognised by its name", () => {
  it.each([
    ...["etc/shadow", "etc/shadow-", "etc/gshadow", "etc/gshadow-", "etc/security/opasswd"],
    ...["etc/ssh/ssh_host_ed25519_key", "etc/ssh/ssh_host_rsa_key.pub", "etc/dropbear/dropbear_rsa_host_key"],
    ...["etc/machine-id", "var/lib/dbus/machine-id", "etc/hostid", "etc/adjtime", "etc/zfs/zpool.cache"],
    ...["var/lib/systemd/random-seed", "var/lib/misc/random-seed", "var/lib/seedrng/seed.credit"],
    ...["boot/efi/loader/random-seed", "var/lib/systemd/credential.secret", "root/.ssh/id_ed25519"],
    ...["root/.gnupg/private-keys-v1.d/x.key", "etc/krb5.keytab", "crypto_keyfile.bin", "etc/ssl/private/x"],
    ...["etc/cryptsetup-keys.d/home.key", "etc/zfs/keys/pool", "var/lib/iwd/home.psk", "etc/x.p12"],
  ])("%s", async (path) => {
    // Without a password, too: accounts are locked with * and !.
    expect(await found({ [path]: "root:*:19000:0:99999:7:::\n" })).toEqual([
      expect.stringMatching(`^${path.replace(".", "\\.")} \\(`),
    ]);
  });

  it("not when it is empty, or a link", async () => {
    expect(await found({ "etc/machine-id": "", "var/lib/dbus/machine-id": link("/etc/machine-id") })).toEqual(
      [],
    );
  });
});

it.each<[string, string, string | Buffer]>([
  ["an SSH public key", "root/.ssh/id_ed25519.pub", sshKey("-t ed25519 -N ''", "k.pub")],
  ["authorized keys", "root/.ssh/authorized_keys", sshKey("-t ed25519 -N ''", "k.pub")],
  ["a minisign public key", "etc/release.pub", fixture("plain.pub")],
  ["a minisign signature", "etc/release.minisig", fixture("plain.minisig")],
  [
    "a certificate",
    "etc/ssl/certs/ca.pem",
    openssl("req -x509 -newkey ed25519 -nodes -keyout /dev/null -subj /CN=x"),
  ],
  ["a public key in PEM", "etc/ssl/x.pem", made(`printf '%s' '${PEM}' | openssl pkey -pubout >key`, "key")],
  ["sshd_config", "etc/ssh/sshd_config", "#HostKey /etc/ssh/ssh_host_rsa_key\nPasswordAuthentication no\n"],
  ["passwd", "etc/passwd", "root:x:0:0:root:/root:/bin/bash\nme:*:1000:1000::/home/me:/bin/sh\n"],
  [
    "a text about keys",
    "etc/README",
    "It begins with -----BEGIN RSA PRIVATE KEY----- and is\nindented.\n-----BEGIN RSA PRIVATE KEY-----\n[...]\n",
  ],
  ["a program that knows keys", "bin/tool", "\x7fELF\0-----BEGIN RSA PRIVATE KEY-----\0-----END\0"],
  ["a pattern for hashes", "etc/login.defs", "ENCRYPT_METHOD YESCRYPT\n# as in me:$6$salt$hash:\n"],
  ["a template for WireGuard", "etc/wireguard/example", "PrivateKey = <your key>\nPublicKey = x\n"],
  ["a public WireGuard key", "etc/wireguard/peer", `[Peer]\nPublicKey = ${KEY32}\n`],
  ["hostapd.conf as it comes", "etc/hostapd/hostapd.conf", "#wpa_passphrase=secret passphrase\n"],
  ["PPP's secrets as they come", "etc/ppp/chap-secrets", "# Secrets for CHAP\n# client server secret IP\n"],
  ["PAM", "etc/pam.d/common-password", "password required pam_unix.so obscure yescrypt\n"],
  ["a short file that begins like a keytab", "etc/short", Buffer.of(5, 2, 0, 0)],
])("no secret: %s", async (_, path, content) => {
  expect(await found({ [path]: content })).toEqual([]);
});

it("a change of every other kind has no secret", async () => {
  await expect(everything().part("r1", "r2")).resolves.toBeDefined();
});

describe("a release with secrets", () => {
  const host = new BuildHost();
  host.release("r1", {
    ...ACCOUNTS,
    "etc/shadow": "old\n",
    "etc/same": PEM,
    "etc/gone": PEM,
    "etc/motd": "1",
  });
  host.release("r2", {
    "etc/shadow": "new\n",
    "etc/gone": null,
    "etc/new.pem": PEM,
    "etc/replaced": PEM,
    "etc/motd": "2",
  });
  host.release("r3", { "etc/replaced": "harmless\n", "etc/new.pem": file(PEM, 0o755) });
  const part = (base: string | null, target: string, allow: string[] = []) =>
    host.part(base, target, host.root, { allow: allow.map(parsePattern) });

  it("is refused, with all of them named, and not for what does not change", async () => {
    await expect(part("r1", "r2")).rejects.toMatchObject({
      ...refusal(["etc/gone", "etc/new.pem", "etc/replaced", "etc/shadow"]),
      message:
        "a bundle must not carry etc/gone (a PEM private key, as it was in the base), " +
        "etc/new.pem (a PEM private key), etc/replaced (a PEM private key), etc/shadow (passwords)",
      hint:
        "take what is new out of git (git rm --cached, .gitignore), make another release, and create its bundle from the same base; a change or deletion carries what the base had: " +
        "put it back as it was, or make that secret worthless; --allow-secret PATH carries it all the same (formats/root.md, What never travels)",
    });
  });

  it("is refused for what only the base has, since the patch and the objects have it", async () => {
    await expect(part("r2", "r3")).rejects.toMatchObject(refusal(["etc/new.pem", "etc/replaced"]));
  });

  it("is refused as a full one for all that the target has", async () => {
    await expect(part(null, "r3")).rejects.toMatchObject(refusal(["etc/new.pem", "etc/same", "etc/shadow"]));
  });

  it("is made when another release no longer has what was new", async () => {
    host.release("r4", { "etc/new.pem": null, "etc/replaced": null, "etc/shadow": "old\n", "etc/gone": PEM });
    const { patch, objects } = await part("r1", "r4");
    expect(patch.includes("PRIVATE KEY") || objects.includes("PRIVATE KEY")).toBe(false);
    expect(patch.toString()).toContain("etc/motd");
  });

  it("is made when each of them is allowed", async () => {
    await expect(part("r1", "r2", ["/etc/shadow", "/etc/gone"])).rejects.toMatchObject(
      refusal(["etc/new.pem", "etc/replaced"]),
    );
    await expect(part("r1", "r2", ["/etc/shadow", "/etc/gone", "*.pem", "replaced"])).resolves.toBeDefined();
  });

  it("is made when only an owner or a permission of one changes", async () => {
    const other = new BuildHost();
    other.release("r1", { ...ACCOUNTS, "etc/shadow": file("old\n", 0o640) });
    other.release("r2", { "etc/shadow": file("old\n", 0o600) });
    const { objects, metadata } = await other.part("r1", "r2");
    expect(objects.length).toBe(32);
    expect(metadata.toString()).toContain("etc/shadow");
  });
});

it("a site that stopped tracking a file keeps it when the release drops it", async () => {
  const host = new BuildHost();
  host.release("r1", { ...ACCOUNTS, ".gitignore": "/usr\n", "etc/shadow": "shipped\n" });
  sh(host.root, "git rm -q --cached etc/shadow");
  host.release("r2", { ".gitignore": "/usr\n/etc/shadow\n" });
  await expect(host.part("r1", "r2")).rejects.toMatchObject(refusal(["etc/shadow"]));
  const part = await host.part("r1", "r2", host.root, { allow: [parsePattern("/etc/shadow")] });
  const site = host.site("r1", "cloned");
  sh(site.root, "git rm -q --cached etc/shadow && echo /etc/shadow >>.gitignore && git add .gitignore");
  site.commit({});
  await site.install(part);
  expect(readFileSync(join(site.root, "etc/shadow"), "utf8")).toBe("shipped\n");
  expect(site.status()).toBe("");

  // As formats/root.md warns:
  const unprepared = host.site("r1", "cloned");
  await unprepared.install(part);
  expect(unprepared.has("etc/shadow")).toBe(false);
});

describe("a build host's own rules", () => {
  const edits: Edits = {
    "opt/app/token": "x\n",
    "opt/app/link": link("/elsewhere"),
    "opt/app/public": "x\n",
    "srv/passphrase": "x\n",
    "etc/ordinary": "x\n",
  };
  const rules = { deny: [parsePattern("/opt/app/")], own: ["srv/passphrase"] };

  it("deny what lies at a path, whatever it is, and the files that a release is signed with", async () => {
    expect(await found(edits, rules)).toEqual([
      "opt/app/link (denied by the configuration)",
      "opt/app/public (denied by the configuration)",
      "opt/app/token (denied by the configuration)",
      "srv/passphrase (the signing key or its passphrase)",
    ]);
  });

  it("allow more than they deny", async () => {
    const allow = ["/opt/app/public", "/opt/app/link"].map(parsePattern);
    expect(await found(edits, { ...rules, allow })).toEqual([
      "opt/app/token (denied by the configuration)",
      "srv/passphrase (the signing key or its passphrase)",
    ]);
  });
});

it("a name that is not UTF-8 is named", async () => {
  const host = new BuildHost();
  edit(host.root, { "etc/x": "" });
  sh(host.root, `printf '%s' '${PEM}' > "$(printf 'etc/caf\\351')"`);
  host.release("r1", {});
  await expect(host.part(null, "r1")).rejects.toMatchObject(refusal(['"etc/caf\\351"']));
});

import { spawn, spawnSync, type ChildProcess } from "node:child_process";
import { randomBytes } from "node:crypto";
import { createServer as createHttpServer } from "node:http";
import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { connect, createServer, type AddressInfo } from "node:net";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { encodeRequest, type SiteRequest } from "../../src/carry/request.js";
import { encodeRecord } from "../../src/stream/records.js";
import {
  encodePublicKey,
  encodeSecretKey,
  generateKeyPair,
  publicKeyLine,
} from "../../src/trust/minisign.js";
import { flipped, input, KEY, pack, PUBLIC_KEY } from "../bundle/support.js";
import { begin, end as endRecord, seal, TOGUID } from "../stream/support.js";
import { CLI, ended, errorOf, inFolder, PUBLIC, run, SECRET, told, type Running } from "./support.js";

const folder = inFolder();

/** A stream from guid 99, whose chunks do not become smaller. */
const noise = (megabytes: number): Uint8Array =>
  seal([
    begin({ toname: "tank/BUILD/gentoo/usr@R2" }),
    ...Array.from({ length: megabytes * 8 }, (_, at) =>
      encodeRecord(
        "WRITE",
        { object: BigInt(at + 1), type: 19, logicalSize: BigInt(128 << 10), toguid: TOGUID },
        randomBytes(128 << 10),
      ),
    ),
    endRecord(),
  ]);
const r2 = await pack({ streams: [input("usr", noise(4))] });

const started: ChildProcess[] = [];
afterEach(async () => {
  await Promise.all(started.splice(0).map(stop));
});
const stop = async (child: ChildProcess): Promise<void> => {
  if (child.exitCode !== null || child.signalCode !== null) return;
  const gone = new Promise((resolve) => child.once("close", resolve));
  child.kill("SIGTERM");
  await gone;
};

/** A port that was free a moment ago. */
const freePort = (): Promise<number> =>
  new Promise((resolve) => {
    const server = createServer().listen(0, "127.0.0.1", () => {
      const { port } = server.address() as AddressInfo;
      server.close(() => resolve(port));
    });
  });

const answers = (port: number): Promise<boolean> =>
  new Promise((resolve) => {
    const socket = connect(port, "127.0.0.1", () => (socket.destroy(), resolve(true)));
    socket.once("error", () => resolve(false));
  });

/** Debian's nginx, serving the mirror. */
async function nginx(port: number, more = ""): Promise<ChildProcess> {
  const config = folder.file(`nginx-${port}.conf`);
  writeFileSync(
    config,
    `daemon off; master_process off; pid ${folder.file(`${port}.pid`)}; error_log stderr crit;
events {}
http {
  access_log ${folder.file("access.log")} combined;
  client_body_temp_path ${folder.path}; proxy_temp_path ${folder.path}; fastcgi_temp_path ${folder.path};
  uwsgi_temp_path ${folder.path}; scgi_temp_path ${folder.path};
  server { listen 127.0.0.1:${port}; root ${folder.file("m")}; ${more} }
}
`,
  );
  const child = spawn("nginx", ["-p", folder.path, "-c", config], { stdio: ["ignore", "ignore", "inherit"] });
  started.push(child);
  while (!(await answers(port))) {
    if (child.exitCode !== null) throw new Error("nginx did not start");
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
  return child;
}

/** The program with this environment beside what it needs, and a memory of its own. */
const startFetch = (args: readonly string[], env: Record<string, string> = {}): Running => {
  const child = spawn(process.execPath, [CLI, "fetch", ...args], {
    cwd: folder.path,
    stdio: ["pipe", "pipe", "pipe"],
    env: { PATH: process.env["PATH"], HOME: folder.path, XDG_STATE_HOME: folder.file("memory"), ...env },
  });
  started.push(child);
  return child;
};
const fetch = (args: readonly string[], env: Record<string, string> = {}) => ended(startFetch(args, env));
const FROM = ["--key", PUBLIC, "--from", "99", "-o", "out"];

/** Waits until so many bytes of the bundle are there. */
async function arrived(child: Running, bytes: number): Promise<void> {
  for (;;) {
    const part = fetched().find((name) => name.endsWith(".part"));
    if (part !== undefined && readFileSync(folder.file(`out/${part}`)).length >= bytes) return;
    if (child.exitCode !== null) throw new Error(`ended with ${child.exitCode}`);
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}

let port = 0;
const address = (): string => `http://127.0.0.1:${port}/`;
const fetched = (): string[] => readdirSync(folder.file("out"));
const isWhole = (): boolean =>
  fetched().length === 1 && readFileSync(folder.file(`out/${fetched()[0]}`)).equals(r2);

beforeEach(async () => {
  port = await freePort();
  mkdirSync(folder.file("out"));
  writeFileSync(folder.file("R2.bundle"), r2);
  await run(["mirror", "add", "R2.bundle", "m", "--key", SECRET], { cwd: folder.path });
});

describe("bundle fetch from nginx", () => {
  test("brings what leads to the newest release, says where, and has nothing to do the second time", async () => {
    await nginx(port);
    const { status, stdout, stderr } = await fetch([address(), ...FROM]);
    expect([status, stderr]).toEqual([
      0,
      expect.stringMatching(/^release R2: 1 bundle, 4\.0 MiB downloaded\n$/),
    ]);
    expect(stdout.toString()).toBe(`out/${fetched()[0]}\n`);
    expect(isWhole()).toBe(true);
    const again = await fetch([address(), ...FROM, "--json"]);
    const result = JSON.parse(again.stdout.toString()) as { release: object; files: object[] };
    expect(result).toMatchObject({ release: { name: "R2" }, files: [{ fetched: false }] });
  });

  test.each([
    ["that compresses", "gzip on; gzip_types *; gzip_min_length 1;"],
    ["that knows no ranges", "max_ranges 0;"],
    ["that is slow", "limit_rate 2m;"],
    ["that sends on to another address", "rewrite ^/old/(.*)$ /$1 redirect;"],
  ])("%s", async (what, config) => {
    await nginx(port, config);
    const { status } = await fetch([what.includes("sends on") ? `${address()}old/` : address(), ...FROM]);
    expect([status, isWhole()]).toEqual([0, true]);
  });

  test("goes on where nginx was killed and comes back", async () => {
    const first = await nginx(port, "limit_rate 400k;");
    const child = startFetch([address(), ...FROM, "--connections", "2"]);
    const end = ended(child);
    await arrived(child, 500_000);
    first.kill("SIGKILL");
    await new Promise((resolve) => first.once("close", resolve));
    await nginx(port);
    expect((await end).status).toBe(0);
    expect(isWhole()).toBe(true);
  });

  test("goes on by the same command after it was killed itself", async () => {
    const slow = await nginx(port, "limit_rate 300k;");
    const child = startFetch([address(), ...FROM]);
    const end = ended(child);
    await arrived(child, 500_000);
    child.kill("SIGKILL");
    await end;
    expect(fetched()).toEqual([expect.stringMatching(/^\.R2-.*\.bundle\.part$/)]);
    await stop(slow);
    rmSync(folder.file("access.log"));
    await nginx(port);
    expect((await fetch([address(), ...FROM])).status).toBe(0);
    expect(isWhole()).toBe(true);
    const sent = [
      ...readFileSync(folder.file("access.log"), "utf8").matchAll(/bundle HTTP\/1\.1" 206 ([0-9]+)/g),
    ];
    expect(sent.reduce((sum, [, bytes]) => sum + Number(bytes), 0)).toBeLessThan(r2.length);
  });

  test("removes what came of a bundle that has left the mirror since, and nothing else", async () => {
    const slow = await nginx(port, "limit_rate 300k;");
    // Of one request, which goes on with a file that is not there any more.
    const child = startFetch([address(), ...FROM, "--connections", "1"]);
    const end = ended(child);
    await arrived(child, 500_000);
    const part = fetched()[0] as string;
    const others = [".mine.part", ".R9-0123456789abcdef.bundle.part"];
    for (const name of others) writeFileSync(folder.file(`out/${name}`), "mine");
    const change = (...args: string[]) =>
      run(["mirror", ...args, "m", "--key", SECRET], { cwd: folder.path });
    writeFileSync(folder.file("R3.bundle"), await pack({ release: { name: "R3", sequence: 3 } }));
    await change("add", "R3.bundle");
    await change("remove", "R2");
    const fast = await freePort();
    await nginx(fast);
    // While it is being downloaded it stays.
    expect((await fetch([`http://127.0.0.1:${fast}/`, ...FROM])).status).toBe(0);
    expect(fetched()).toContain(part);
    child.kill("SIGKILL");
    await end;
    await stop(slow);
    expect(await fetch([`http://127.0.0.1:${fast}/`, ...FROM])).toMatchObject({
      status: 0,
      stderr: expect.stringContaining(
        `removed out/${part}: the mirror does not have that bundle any more\n`,
      ) as string,
    });
    expect(fetched().sort()).toEqual([...others, expect.stringMatching(/^R3-/)].sort());
  });

  test("tells why it waits, and how long", async () => {
    await nginx(port, "location ~ bundle$ { return 503; }");
    const { status, stderr } = await fetch([address(), ...FROM, "--retries", "2"]);
    expect([status, stderr]).toEqual([
      16,
      expect.stringMatching(/^trying again in 2 s: (http:.*\.bundle: the server answers 503)\nbundle: \1\n/),
    ]);
  });

  test("is not faster than it may be", async () => {
    await nginx(port);
    const started = performance.now();
    const { status } = await fetch([address(), ...FROM, "--limit-rate", "2M"]);
    expect([status, isWhole()]).toEqual([0, true]);
    // A machine that is busy only makes it slower.
    expect((performance.now() - started) / 1000).toBeGreaterThan((0.8 * r2.length) / (2 << 20));
  });

  test("goes through a proxy, and not where no_proxy says so", async () => {
    await nginx(port);
    const asked: string[] = [];
    const proxy = createHttpServer((request, response) => {
      asked.push(request.url ?? "");
      response.writeHead(503).end();
    });
    await new Promise<void>((resolve) => proxy.listen(0, "127.0.0.1", resolve));
    const { port: at } = proxy.address() as AddressInfo;
    const env = { http_proxy: `http://127.0.0.1:${at}` };
    const refused = await fetch([address(), ...FROM, "--retries", "0"], env);
    expect([refused.status, asked]).toEqual([16, [`${address()}index.signed`]]);
    expect((await fetch([address(), ...FROM], { ...env, no_proxy: "127.0.0.1" })).status).toBe(0);
    proxy.close();
    proxy.closeAllConnections();
  });
});

describe("bundle fetch through a proxy that cannot be", () => {
  // The first ended with status 1; of the second another variable was named, and also where no proxy is needed.
  test.each([
    [
      { http_proxy: "http://us%er:secret@127.0.0.1:9" },
      "http_proxy: the proxy's user and password have a % that begins no %XX; a % itself is %25",
    ],
    [
      { all_proxy: "socks5://u:secret@127.0.0.1:9" },
      "all_proxy: the proxy must be an address that begins with http://",
    ],
  ])("names the variable of %j, and nothing of a password", async (env, message) => {
    await nginx(port);
    expect(told(await fetch([address(), ...FROM], env))).toEqual({
      status: 2,
      message,
      hint: "no_proxy names the servers that need no proxy",
    });
    expect((await fetch([address(), ...FROM], { ...env, no_proxy: "127.0.0.1" })).status).toBe(0);
    expect(isWhole()).toBe(true);
  });
});

describe("bundle fetch over TLS", () => {
  test("believes the certificates of --ca-file, also through a proxy's CONNECT, and no others", async () => {
    const request = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=mirror";
    const made = spawnSync(
      "openssl",
      [
        ...request.split(" "),
        "-addext",
        "subjectAltName=IP:127.0.0.1",
        "-keyout",
        "tls.key",
        "-out",
        "tls.pem",
      ],
      { cwd: folder.path },
    );
    expect(made.status).toBe(0);
    const tls = await freePort();
    await nginx(
      port,
      `listen 127.0.0.1:${tls} ssl; ssl_certificate ${folder.file("tls.pem")}; ssl_certificate_key ${folder.file("tls.key")};`,
    );
    const url = `https://127.0.0.1:${tls}/`;
    const { status, hint } = told(await fetch([url, ...FROM]));
    expect([status, hint]).toEqual([16, "if the server has an authority of its own, --ca-file names it"]);

    const asked: string[] = [];
    const proxy = createHttpServer().on("connect", ({ url: to = "" }, socket) => {
      asked.push(to);
      const server = connect(tls, "127.0.0.1", () => {
        socket.write("HTTP/1.1 200 OK\r\n\r\n");
        server.pipe(socket).pipe(server);
      });
      for (const each of [server, socket]) each.on("error", () => undefined);
    });
    await new Promise<void>((resolve) => proxy.listen(0, "127.0.0.1", resolve));
    const { port: at } = proxy.address() as AddressInfo;
    const result = await fetch([url, ...FROM, "--ca-file", "tls.pem"], {
      https_proxy: `http://127.0.0.1:${at}`,
    });
    expect([result.status, isWhole()]).toEqual([0, true]);
    expect(new Set(asked)).toEqual(new Set([`127.0.0.1:${tls}`]));
    proxy.close();
    proxy.closeAllConnections();
  });
});

describe("bundle fetch --for", () => {
  const site = generateKeyPair();
  const now = Math.floor(Date.now() / 1000);
  const request = (changed: Partial<SiteRequest> = {}): SiteRequest => ({
    format: 1,
    kind: "request",
    site: "plant",
    made: now,
    zferry: "0.1.0",
    product: "demo",
    installed: null,
    highestSequence: 1,
    streams: [{ role: "usr", guids: ["99"], poolFeatures: [], freeBytes: 1 << 30 }],
    root: null,
    keys: { threshold: 1, counter: 0, trusted: [KEY.keyId] },
    ...changed,
  });
  const write = (bytes: Uint8Array): void => writeFileSync(folder.file("plant.request"), bytes);
  const FOR = ["--key", PUBLIC, "--for", "plant.request", "-o", "out"];
  const SIGNED = [...FOR, "--site-key", "plant.pub"];
  beforeEach(async () => {
    writeFileSync(folder.file("plant.pub"), encodePublicKey(site.publicKey));
    await nginx(port);
  });

  test("brings what the site needs, and says so where nobody knows whose request it is", async () => {
    write(encodeRequest(request(), site.secretKey));
    const { status, stderr } = await fetch([address(), ...SIGNED]);
    expect([status, isWhole()]).toEqual([0, true]);
    expect(stderr).toMatch(/^release R2: 1 bundle, /);
    const again = await fetch([address(), ...FOR]);
    expect(again.stderr).toMatch(
      /^warning: plant\.request is not signed by a known key of site plant: anybody may have made it\nrelease R2/,
    );
    write(
      encodeRequest(
        request({ streams: [{ role: "usr", guids: [String(TOGUID)], poolFeatures: [], freeBytes: 1 }] }),
        site.secretKey,
      ),
    );
    expect((await fetch([address(), ...SIGNED])).stderr).toBe("nothing to do: release R2 is there\n");
  });

  test("brings a new site a full bundle", async () => {
    const stream = seal([begin({ toname: "tank/usr@R2", fromguid: 0n }), endRecord()]);
    writeFileSync(folder.file("full.bundle"), await pack({ streams: [input("usr", stream)] }));
    await run(["mirror", "add", "full.bundle", "m", "--key", SECRET], { cwd: folder.path });
    const streams = [{ role: "usr", guids: [], poolFeatures: [], freeBytes: 1 << 30 }];
    write(encodeRequest(request({ highestSequence: 0, streams }), site.secretKey));
    expect((await fetch([address(), ...SIGNED])).stderr).toMatch(/^release R2: 1 bundle, /);
    expect(fetched()).toHaveLength(1);
  });

  const signed = (changed: Partial<SiteRequest> = {}): Uint8Array =>
    encodeRequest(request(changed), site.secretKey);
  test.each<[string, () => Uint8Array, string, string]>([
    ["by another key", () => encodeRequest(request(), KEY), "signature-invalid", "is not by key"],
    [
      "that was changed",
      () =>
        Buffer.from(Buffer.from(signed()).toString().replace('"highestSequence":1', '"highestSequence":0')),
      "signature-invalid",
      "does not fit",
    ],
    ["that is not signed", () => encodeRequest(request(), undefined), "signature-missing", "is not signed"],
    [
      "of another product",
      () => signed({ product: "office" }),
      "product-mismatch",
      "site plant has product office, the mirror is of demo",
    ],
    [
      "of a site that no bundle leads from",
      () => signed({ streams: [{ role: "usr", guids: ["7"], poolFeatures: [], freeBytes: 1 }] }),
      "chain-missing",
      "for site plant: it has no known release, the newest here, R2, needs",
    ],
    [
      "of a site without a dataset for the stream",
      () => signed({ streams: [{ role: "opt", guids: ["99"], poolFeatures: [], freeBytes: 1 }] }),
      "chain-missing",
      "for site plant: no bundle here is one for it, which has no known release",
    ],
    [
      "of a site that has had newer ones",
      () => signed({ highestSequence: 5 }),
      "sequence-mismatch",
      "for site plant: the newest here, R2, has sequence number 2, it has accepted 5 already",
    ],
  ])("refuses a request %s, and brings nothing", async (_, make, code, message) => {
    write(make());
    const error = errorOf(await fetch([address(), ...SIGNED, "--json"]));
    expect([error.code, error.message]).toEqual([code, expect.stringContaining(message)]);
    expect(fetched()).toEqual([]);
  });

  test("names the command that makes what no mirror has", async () => {
    write(signed({ streams: [{ role: "usr", guids: ["7"], poolFeatures: [], freeBytes: 1 }] }));
    expect(told(await fetch([address(), ...SIGNED]))).toEqual({
      status: 13,
      message:
        "for site plant: it has no known release, the newest here, R2, needs guid 99: no bundle here leads to guid 99",
      hint: "have a bundle made for it: bundle create --for plant.request",
    });
  });

  // The hint was --full, which is refused beside --for.
  test("names it also where the mirror has a full bundle only", async () => {
    const stream = seal([
      begin({ toname: "tank/usr@R3", fromguid: 0n, toguid: 3n }),
      endRecord({ toguid: 3n }),
    ]);
    const release = { name: "R3", sequence: 3 };
    writeFileSync(folder.file("full.bundle"), await pack({ release, streams: [input("usr", stream)] }));
    await run(["mirror", "add", "full.bundle", "m", "--key", SECRET], { cwd: folder.path });
    write(signed());
    const { status, message, hint } = told(await fetch([address(), ...SIGNED]));
    expect([status, message, hint]).toEqual([
      13,
      "for site plant: it has no known release, and the newest here, R3, is here as a full bundle only",
      "have a bundle made for it: bundle create --for plant.request; as far as what is here leads: --to R2",
    ]);
  });

  test.each([
    [-40 * 86_400, /was made at .*, 40 days ago: the site may have another release by now\n/],
    [3 * 86_400, /was made at .*, which is yet to come: the site's clock is wrong, or this one\n/],
  ])("warns of a request made %d seconds from now", async (seconds, warning) => {
    write(signed({ made: now + seconds }));
    const { status, stderr } = await fetch([address(), ...SIGNED]);
    expect([status, stderr]).toEqual([0, expect.stringMatching(warning)]);
  });

  test("--site-key is of a request", async () => {
    const result = await fetch([address(), ...FROM, "--site-key", "plant.pub"]);
    expect(told(result)).toMatchObject({
      status: 2,
      message: "--site-key is of a request: it goes with --for",
    });
  });
});

describe("bundle fetch", () => {
  test("refuses an old index that a mirror shows again, and brings nothing", async () => {
    await nginx(port);
    const old = readFileSync(folder.file("m/index.signed"));
    await run(["mirror", "index", "m", "--key", SECRET], { cwd: folder.path });
    expect((await fetch([address(), ...FROM])).status).toBe(0);
    rmSync(folder.file("out"), { recursive: true });
    mkdirSync(folder.file("out"));
    writeFileSync(folder.file("m/index.signed"), old);
    expect(errorOf(await fetch([address(), ...FROM, "--json"])).code).toBe("index-rolled-back");
    expect(fetched()).toEqual([]);
  });

  // It ended with the 404, and the specification said that it reads the index again.
  test("reads the index again where what it named is gone by then, and not where nothing changed", async () => {
    const inPath = { cwd: folder.path };
    writeFileSync(folder.file("other.key"), await encodeSecretKey(generateKeyPair().secretKey, undefined));
    spawnSync("cp", ["-r", "m", "later"], inPath);
    await run(["sign", "R2.bundle", "--key", "other.key"], inPath);
    await run(["mirror", "add", "R2.bundle", "later", "--key", SECRET], inPath);
    let now = "m";
    const asked: string[] = [];
    const server = createHttpServer(({ url = "", headers }, response) => {
      asked.push(url.slice(1, 4));
      if (url.endsWith(".bundle") && now === "m") now = "later";
      const path = folder.file(`${now}${url}`);
      if (!existsSync(path)) return void response.writeHead(404).end();
      const [, from, to] = /^bytes=([0-9]+)-([0-9]+)$/.exec(headers.range ?? "") ?? [];
      const bytes = readFileSync(path);
      if (from === undefined) return void response.end(bytes);
      const range = `bytes ${from}-${to}/${bytes.length}`;
      response.writeHead(206, { "Content-Range": range }).end(bytes.subarray(Number(from), Number(to) + 1));
    });
    await new Promise<void>((resolve) => server.listen(port, "127.0.0.1", resolve));
    const { status, stderr } = await fetch([address(), ...FROM]);
    expect([status, stderr]).toEqual([
      0,
      expect.stringMatching(
        /^the mirror was changed, and its index is read again: .*: the server answers 404\nrelease R2: 1 bundle, /,
      ),
    ]);
    const [name = ""] = fetched();
    expect(readFileSync(folder.file(`out/${name}`)).equals(readFileSync(folder.file("R2.bundle")))).toBe(
      true,
    );

    rmSync(folder.file(`out/${name}`));
    rmSync(folder.file(`later/${name}`));
    asked.length = 0;
    expect(told(await fetch([address(), ...FROM])).message).toBe(
      `${address()}${name}: the server answers 404`,
    );
    expect(asked).toEqual(["ind", "R2-", "ind"]);
    server.close();
    server.closeAllConnections();
  });

  test("onto a damaged file of the same name says that it has to be removed", async () => {
    await nginx(port);
    await fetch([address(), ...FROM]);
    const path = `out/${fetched()[0]}`;
    for (const bytes of [flipped(r2, r2.length - 1_500), r2.subarray(0, 1_000), Buffer.from("x")]) {
      writeFileSync(folder.file(path), bytes);
      const { status, message, hint } = told(await fetch([address(), ...FROM]));
      expect([[10, 12].includes(status ?? 0), message]).toEqual([true, expect.stringContaining(path)]);
      expect(hint).toBe(`remove ${path}: the same command fetches it again`);
    }
    rmSync(folder.file(path));
    expect((await fetch([address(), ...FROM])).status).toBe(0);
    expect(isWhole()).toBe(true);
  });

  test("goes on over a change of keys, and by no other key", async () => {
    await nginx(port);
    const next = generateKeyPair();
    writeFileSync(folder.file("next.pub"), encodePublicKey(next.publicKey));
    const step = (from: bigint, to: bigint): Uint8Array =>
      seal([begin({ toname: "tank/usr@R", fromguid: from, toguid: to }), endRecord({ toguid: to })]);
    const keys = { counter: 1, add: [publicKeyLine(next.publicKey)], revoke: [publicKeyLine(PUBLIC_KEY)] };
    const made = {
      R3: await pack({
        release: { name: "R3", sequence: 3 },
        streams: [input("usr", step(TOGUID, 3n))],
        keys,
      }),
      R4: await pack({
        release: { name: "R4", sequence: 4 },
        streams: [input("usr", step(3n, 4n))],
        key: next.secretKey,
      }),
      R5: await pack({ release: { name: "R5", sequence: 5 }, streams: [input("usr", step(4n, 5n))] }),
    };
    const add = async (name: keyof typeof made): Promise<void> => {
      writeFileSync(folder.file(`${name}.bundle`), made[name]);
      const args = ["mirror", "add", `${name}.bundle`, "m", "--key", SECRET, "--trust", "next.pub"];
      expect((await run(args, { cwd: folder.path })).status).toBe(0);
    };
    await add("R3");
    await add("R4");
    const { status, stderr } = await fetch([address(), ...FROM]);
    expect([status, stderr]).toEqual([0, expect.stringMatching(/^release R4: 3 bundles, /)]);
    // What is there counts for what comes, too.
    expect((await fetch([address(), ...FROM])).stderr).toMatch(/^release R4: 3 bundles, 0 B downloaded/);
    // The old key signed this one.
    await add("R5");
    const error = errorOf(await fetch([address(), ...FROM, "--json"]));
    expect([error.code, error.message]).toEqual(["signature-missing", expect.stringContaining("/R5-")]);
    expect(
      fetched()
        .map((name) => name.slice(0, 3))
        .sort(),
    ).toEqual(["R2-", "R3-", "R4-"]);
  });

  test("remembers both of two indexes that are seen at one moment", async () => {
    await nginx(port);
    mkdirSync(folder.file("memory/zferry"), { recursive: true });
    const lock = spawn("flock", ["memory/zferry/mirrors.lock", "sh", "-c", "echo locked; read -r line"], {
      cwd: folder.path,
      stdio: ["pipe", "pipe", "ignore"],
    });
    started.push(lock);
    await new Promise((resolve) => lock.stdout.once("data", resolve));
    const first = fetch([address(), ...FROM]);
    await new Promise((resolve) => setTimeout(resolve, 1_000));
    const other = {
      product: "other",
      key: publicKeyLine(generateKeyPair().publicKey),
      counter: 5,
      created: 5,
    };
    const path = folder.file("memory/zferry/mirrors.json");
    writeFileSync(path, JSON.stringify({ version: 1, indexes: [other] }));
    lock.stdin.end("\n");
    expect((await first).status).toBe(0);
    const { indexes } = JSON.parse(readFileSync(path, "utf8")) as { indexes: { product: string }[] };
    expect(indexes.map(({ product }) => product)).toEqual(["other", "demo"]);
  });

  test("refuses another product's index at a site", async () => {
    await nginx(port);
    mkdirSync(folder.file("keys"));
    writeFileSync(folder.file("keys/a.pub"), readFileSync(PUBLIC));
    writeFileSync(
      folder.file("site.toml"),
      `product = "office"\nstate = "${folder.file("state")}"\n[streams]\nusr = "p/usr"\n[trust]\nkeys = "${folder.file("keys")}"\n`,
    );
    const result = await fetch([address(), "--config", "site.toml", "-o", "out", "--json"]);
    expect(errorOf(result).code).toBe("product-mismatch");
  });

  test("says once why the only mirror is of no use, and what a mirror's address is", async () => {
    await nginx(port);
    expect(told(await fetch([`${address()}index.html`, ...FROM]))).toEqual({
      status: 16,
      message: `${address()}index.html/index.signed: the server answers 404`,
      hint: "a mirror is named by the address of its folder, in which index.signed lies",
    });
    const [name = ""] = readdirSync(folder.file("m")).filter((each) => each.endsWith(".bundle"));
    rmSync(folder.file(`m/${name}`));
    expect(told(await fetch([address(), ...FROM])).message).toBe(
      `${address()}${name}: the server answers 404`,
    );
    expect(fetched()).toEqual([]);
    const nowhere = await fetch([address(), "--key", PUBLIC, "--from", "99", "-o", "none"]);
    expect(told(nowhere).hint).toBe("make it first, or name another one");
  });

  test("to where files may not be so large says what to do", async () => {
    await nginx(port);
    const command = [process.execPath, CLI, "fetch", address(), ...FROM].map((word) => `'${word}'`).join(" ");
    const child = spawn("bash", ["-c", `trap '' XFSZ; ulimit -f 1024; ${command}`], {
      cwd: folder.path,
      stdio: ["pipe", "pipe", "pipe"],
      env: { ...process.env, XDG_STATE_HOME: folder.file("memory") },
    });
    const { status, hint } = told(await ended(child));
    expect([status, hint]).toEqual([
      16,
      "the file system, or ulimit -f, allows none so large; a bundle can be written elsewhere, and bundle copy makes volumes of it",
    ]);
  });

  test("refuses an index by a key that is not trusted", async () => {
    await nginx(port);
    writeFileSync(folder.file("other.pub"), encodePublicKey(generateKeyPair().publicKey));
    const result = await fetch([address(), "--key", "other.pub", "--from", "99", "--json"]);
    expect(errorOf(result).code).toBe("signature-missing");
    expect(existsSync(folder.file("memory"))).toBe(false);
  });

  test.each([
    [["file:///srv/m", ...FROM], "file:///srv/m: is neither http:// nor https://"],
    [["http://a/", "--key", PUBLIC], "with --key, --from, --for or --full must say what to start from"],
    [["http://a/", "--full", ...FROM], "--from, --for and --full contradict each other"],
    [
      ["http://a/", ...FROM, "--limit-rate", "fast"],
      "--limit-rate: fast is not a number of bytes such as 500k or 2M, from 1 on",
    ],
    [["http://a/", ...FROM, "--ca-file", PUBLIC], `--ca-file ${PUBLIC}: has no certificate in PEM`],
  ])("%j is a usage error", async (args, message) => {
    expect(told(await fetch(args))).toMatchObject({ status: 2, message });
  });
});

import { spawn, spawnSync, type ChildProcess } from "node:child_process";
import { randomBytes } from "node:crypto";
import { createServer as createHttpServer } from "node:http";
import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { connect, createServer, type AddressInfo } from "node:net";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { encodeRecord } from "../../src/stream/records.js";
import { encodePublicKey, generateKeyPair } from "../../src/trust/minisign.js";
import { input, pack } from "../bundle/support.js";
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

  test("is not faster than it may be", async () => {
    await nginx(port);
    const child = startFetch([address(), ...FROM, "--limit-rate", "100k"]);
    const end = ended(child);
    await new Promise((resolve) => setTimeout(resolve, 3_000));
    child.kill("SIGTERM");
    expect((await end).status).toBe(130);
    expect(isWhole()).toBe(false);
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
      "--limit-rate: fast is not a number of bytes such as 500k or 2M",
    ],
    [["http://a/", ...FROM, "--ca-file", PUBLIC], `--ca-file ${PUBLIC}: has no certificate in PEM`],
  ])("%j is a usage error", async (args, message) => {
    expect(told(await fetch(args))).toMatchObject({ status: 2, message });
  });
});

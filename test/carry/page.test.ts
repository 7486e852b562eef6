import { spawnSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { describe, expect, test } from "vitest";
import { inIndexOrder } from "../../src/carry/index-format.js";
import { mirrorPage, PAGE_BYTES_MAX } from "../../src/carry/page.js";
import { PUBLIC_KEY } from "../bundle/support.js";
import { entry, index } from "./mirrors.js";

const page = (...args: Parameters<typeof index>): string => mirrorPage(index(...args), PUBLIC_KEY);

describe("the page of a mirror", () => {
  test("has releases, sizes, notes, the key, and where each bundle lies", () => {
    const html = page([entry(1), entry(2, { notes: "New kernel.\nReboot." })]);
    for (const text of [
      "<h3>R2 <small>2</small></h3>",
      'from R1, <a href="R2.bundle">8.5 KiB</a>',
      "New kernel.<br>Reboot.",
      PUBLIC_KEY.keyId,
      "minisign -Vm index.json",
      "<svg ",
    ])
      expect(html).toContain(text);
    // The newest first.
    expect(html.indexOf("<h3>R2")).toBeLessThan(html.indexOf("<h3>R1"));
  });

  test.each(["<script>alert(1)</script>", `"><img src=x onerror=alert(1)>`, "'&lt;b", "a\u202eb", "\u0007"])(
    "escapes notes: %j",
    (notes) => {
      const html = page([entry(1, { notes })]);
      expect(html).not.toContain(notes);
      expect(html).not.toMatch(/<script|<img|\u202e|\u0007/);
    },
  );

  test("escapes the name of a base", () => {
    const [stream] = entry(1).streams;
    const base = { guid: "5", snapshot: "R0" };
    const html = page([entry(1, { streams: [{ ...stream, base: { ...base, snapshot: "<i>" } } as never] })]);
    expect(html).toContain("from &lt;i&gt;");
    expect(html).not.toContain("<i>");
  });

  test("has no script, and loads nothing", () => {
    const html = page([entry(1)]);
    expect(html).not.toMatch(/<script|<link|<img|<iframe|@import|url\(| on[a-z]+=|https?:/i);
    expect(html).toContain("default-src 'none'");
  });

  test.each([
    ["in a row", (at: number) => entry(at, { notes: "&".repeat(500) })],
    ["all to one release", (at: number) => entry(at, { release: { name: "R9", sequence: 9 } })],
  ])("of 1,000 bundles %s stays small, and tells how many there are", (_, make) => {
    const html = page(Array.from({ length: 1_000 }, (_, at) => make(at + 1)));
    expect(Buffer.byteLength(html)).toBeLessThanOrEqual(PAGE_BYTES_MAX);
    expect(html).toMatch(/<p>The newest [0-9]+ of 1000\. /);
  });

  test("of no bundle is one", () => {
    expect(page([])).toContain("0 bundles, 0 B");
  });

  const hasChromium =
    spawnSync("chromium", ["--version"]).status === 0 || process.env["ZFERRY_REQUIRE_TOOLS"] === "1";
  test.skipIf(!hasChromium)("fits a telephone and a desk, light and dark, in a browser", () => {
    const folder = process.env["ZFERRY_SHOTS"] ?? mkdtempSync(join(tmpdir(), "zferry-page-"));
    const bundles = Array.from({ length: 12 }, (_, at) =>
      entry(at + 2, { notes: `Release ${at + 2}.\n${"long words ".repeat(20)}` }),
    );
    const skipping = entry(20, {
      release: { name: "R13", sequence: 13 },
      streams: [{ role: "usr", base: { guid: "1005" }, target: { guid: "1013", snapshot: "R13" } }],
    });
    const full = entry(21, {
      release: { name: "R9", sequence: 9 },
      streams: [{ role: "usr", target: { guid: "1009", snapshot: "R9" } }],
    });
    const probe = `<pre id="wide"></pre><script>document.getElementById("wide").textContent = document.documentElement.scrollWidth <= innerWidth ? "FITS" : "WIDE"</script></body>`;
    const html = page([...bundles, skipping, full].sort(inIndexOrder));
    writeFileSync(join(folder, "index.html"), html);
    // Only this copy may run what measures it.
    writeFileSync(
      join(folder, "probe.html"),
      html.replace(/<meta http-equiv.*>\n/, "").replace("</body>", probe),
    );
    const chromium = (...args: string[]) =>
      spawnSync("chromium", ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", ...args], {
        encoding: "utf8",
        timeout: 60_000,
      });
    try {
      for (const [name, size, ...flags] of [
        ["telephone", "500,1400"],
        ["desk-dark", "1200,1400", "--blink-settings=preferredColorScheme=0"],
      ] as [string, string, ...string[]][]) {
        const shot = join(folder, `${name}.png`);
        const { status, stderr } = chromium(
          `--window-size=${size}`,
          `--screenshot=${shot}`,
          ...flags,
          `file://${folder}/index.html`,
        );
        expect([status, stderr.includes("Refused")]).toEqual([0, false]);
        expect(readFileSync(shot).subarray(1, 4).toString()).toBe("PNG");
        const { stdout } = chromium(`--window-size=${size}`, "--dump-dom", `file://${folder}/probe.html`);
        expect(stdout).toContain('<pre id="wide">FITS</pre>');
      }
    } finally {
      if (process.env["ZFERRY_SHOTS"] === undefined) rmSync(folder, { recursive: true });
    }
  });
});

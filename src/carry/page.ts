import { createHash } from "node:crypto";
import { formatBytes, formatTime, printable } from "../report.js";
import { publicKeyLine, type PublicKey } from "../trust/minisign.js";
import { INDEX_NAME, type IndexEntry, type MirrorIndex } from "./index-format.js";

// formats/mirror.md, The page. Pure: an index goes in, HTML for people comes out. No script, nothing from elsewhere.

/** Bytes of the page. */
export const PAGE_BYTES_MAX = 300_000;
/** Of which the list of bundles may take so many. */
const LIST_BYTES_MAX = 220_000;
/** Releases in the picture: what a telephone shows on three screens. */
const PICTURE_RELEASES = 40;
/** And bundles, which all may lead to one release. */
const PICTURE_BUNDLES = 200;
/** Characters of a bundle's notes. */
const LIST_NOTES = 280;

const ENTITIES: Record<string, string> = {
  "&": "&amp;",
  "<": "&lt;",
  ">": "&gt;",
  '"': "&quot;",
  "'": "&#39;",
};

/** Text for content and for quoted attributes. What could command a terminal cannot turn the page's text around either. */
const escaped = (text: string): string => printable(text).replace(/[&<>"']/g, (each) => ENTITIES[each] ?? "");

/** The page that a mirror shows people. It is not signed, and says so. */
export function mirrorPage(index: MirrorIndex, key: PublicKey): string {
  const newest = index.bundles.toReversed();
  const nameOf = namesOfGuids(index.bundles);
  let list = "";
  let shown = 0;
  for (const entry of newest) {
    const item = bundleItem(entry, nameOf);
    if (Buffer.byteLength(list) + Buffer.byteLength(item) > LIST_BYTES_MAX) break;
    list += item;
    shown += 1;
  }
  const left = newest.length - shown;
  const total = index.bundles.reduce((sum, { size }) => sum + size, 0);
  const product = escaped(index.product);
  return `<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>${product}: releases</title>
<style>${STYLE}</style>
</head>
<body>
<header>
<h1>${product}</h1>
<p>${newest.length} ${newest.length === 1 ? "bundle" : "bundles"}, ${formatBytes(total)}. Written ${time(index.created)}; the list is believed until ${time(index.expires)}.</p>
</header>
<main>
<section>
<h2>Fetch</h2>
<pre>bundle fetch <b>ADDRESS OF THIS PAGE</b></pre>
<p>on a site with a network takes what leads from its release to the newest. Elsewhere <code>--key release.pub --from GUID</code> says
whom to believe and where to begin. Everything is verified as it arrives.</p>
</section>
<section>
<h2>Which bundle leads where</h2>
${picture(index.bundles, nameOf)}
</section>
<section>
<h2>Bundles</h2>
${left === 0 ? "" : `<p>The newest ${shown} of ${newest.length}. <a href="${INDEX_NAME}">${INDEX_NAME}</a> has all.</p>\n`}<ol>
${list}</ol>
</section>
<section>
<h2>Verify by hand</h2>
<p><strong>This page is not signed.</strong> Take the public key from elsewhere and compare it; the list was signed by key</p>
<dl>
<dt>id</dt><dd><code>${key.keyId}</code></dd>
<dt>public key</dt><dd><code>${escaped(publicKeyLine(key))}</code></dd>
<dt>SHA-256 of its 32 bytes</dt><dd><code>${fingerprintOf(key)}</code></dd>
</dl>
<p>The list, with stock minisign:</p>
<pre>head -n 4 ${INDEX_NAME} &gt;index.json.minisig
tail -n +5 ${INDEX_NAME} &gt;index.json
minisign -Vm index.json -p release.pub</pre>
<p>A bundle, in an empty folder:</p>
<pre>tar -xf R2.bundle
minisign -V -p release.pub -m SHA256SUMS -x signatures/*.minisig
sha256sum --strict -c SHA256SUMS</pre>
<p><code>sha256sum SHA256SUMS</code> gives the identity that the list has.</p>
</section>
</main>
</body>
</html>
`;
}

const fingerprintOf = ({ key }: PublicKey): string => createHash("sha256").update(key).digest("hex");

const time = (seconds: number): string => `<time>${formatTime(seconds)}</time>`;

/** For a role's guid the release that a bundle of the mirror makes it by. */
type NameOf = (role: string, guid: string) => string | undefined;

function namesOfGuids(bundles: readonly IndexEntry[]): NameOf {
  const names = new Map<string, string>();
  for (const { release, streams } of bundles)
    for (const { role, target } of streams) names.set(`${role} ${target.guid}`, release.name);
  return (role, guid) => names.get(`${role} ${guid}`);
}

/** What a bundle leads from, for people; undefined for a full one. */
function baseOf({ streams }: IndexEntry, nameOf: NameOf): string | undefined {
  const based = streams.find(({ base }) => base !== undefined);
  if (based?.base === undefined) return undefined;
  const { role, base } = based;
  return nameOf(role, base.guid) ?? base.snapshot ?? `guid ${base.guid}`;
}

function bundleItem(entry: IndexEntry, nameOf: NameOf): string {
  const { release, path, size, created, expires, notes, streams, root, signers, identity } = entry;
  const base = baseOf(entry, nameOf);
  const guids = streams
    .map(({ role, base, target }) => `${role} ${base?.guid ?? "nothing"} → ${target.guid}`)
    .join(", ");
  const text =
    notes !== undefined && notes.length > LIST_NOTES
      ? `${notes.slice(0, LIST_NOTES).replace(/[\ud800-\udbff]$/, "")}…`
      : notes;
  return `<li>
<h3>${escaped(release.name)} <small>${release.sequence}</small></h3>
<p>${base === undefined ? "in full" : `from ${escaped(base)}`}, <a href="${escaped(path)}">${formatBytes(size)}</a>, ${time(created)}${expires === undefined ? "" : `, until ${time(expires)}`}</p>
${text === undefined ? "" : `<p class="notes">${text.split("\n").map(escaped).join("<br>")}</p>\n`}<details><summary>details</summary><p>${escaped(guids)}${root === undefined ? "" : `<br>/ tree ${root.base ?? "nothing"} → ${root.target}`}<br>signed by ${signers.join(", ")}<br>identity ${identity}</p></details>
</li>
`;
}

const ROW = 36;
const WIDTH = 360;
const AXIS = 150;

/** The releases below one another, the newest on top, and each bundle as an arc from its base up to its target. */
function picture(bundles: readonly IndexEntry[], nameOf: NameOf): string {
  const targets = new Map<string, number>();
  for (const { release } of bundles) targets.set(release.name, release.sequence);
  const all = [...targets].sort(([, a], [, b]) => b - a).map(([name]) => name);
  const shown = all.slice(0, PICTURE_RELEASES);
  const shownBundles = bundles
    .filter(({ release }) => shown.includes(release.name))
    .toReversed()
    .slice(0, PICTURE_BUNDLES);
  const bases = shownBundles.flatMap((entry) => baseOf(entry, nameOf) ?? []);
  // What no bundle here makes: where a site must be already.
  const outside = [...new Set(bases)].filter((name) => !targets.has(name));
  const rows = [...shown, ...outside.slice(0, PICTURE_RELEASES)];
  const rowOf = new Map(rows.map((name, row) => [name, row]));
  const y = (row: number): number => ROW / 2 + row * ROW;
  const arcs: string[] = [];
  let hidden = 0;
  for (const entry of shownBundles) {
    const to = rowOf.get(entry.release.name) as number;
    const base = baseOf(entry, nameOf);
    const title = `<title>${escaped(`${base ?? "nothing"} → ${entry.release.name}, ${formatBytes(entry.size)}`)}</title>`;
    if (base === undefined) {
      arcs.push(`<circle class="full" cx="${AXIS}" cy="${y(to)}" r="10">${title}</circle>`);
      continue;
    }
    const from = rowOf.get(base);
    if (from === undefined) {
      hidden += 1;
      continue;
    }
    const bend = Math.min(AXIS - 12, 14 + Math.abs(from - to) * 16);
    arcs.push(
      from - to === 1
        ? `<path d="M${AXIS} ${y(from)}V${y(to)}">${title}</path>`
        : `<path d="M${AXIS} ${y(from)}C${AXIS - bend * 1.3} ${y(from)} ${AXIS - bend * 1.3} ${y(to)} ${AXIS} ${y(to)}">${title}</path>`,
    );
  }
  const points = rows.map((name, row) => {
    const kind = targets.has(name) ? "" : ' class="outside"';
    const label = name.length > 22 ? `${name.slice(0, 21)}…` : name;
    return `<circle${kind} cx="${AXIS}" cy="${y(row)}" r="5"/><text${kind} x="${AXIS + 18}" y="${y(row) + 5}">${escaped(label)}</text>`;
  });
  const notes = [
    "Each line is a bundle, from the release that it starts from up to the one that it leads to; a ring, one in full, for a new site.",
    ...(outside.length === 0 ? [] : ["Hollow: no bundle here leads there."]),
    ...(all.length > shown.length
      ? [
          `The newest ${shown.length} of ${all.length} releases${hidden === 0 ? "" : `; ${hidden} lines begin below`}.`,
        ]
      : []),
  ];
  const height = Math.max(1, rows.length) * ROW;
  return `<svg viewBox="0 0 ${WIDTH} ${height}" width="${WIDTH}" height="${height}" role="img" aria-label="which bundle leads from which release to which">
${arcs.join("\n")}
${points.join("\n")}
</svg>
<p class="legend">${notes.join(" ")}</p>`;
}

const STYLE = `
:root{color-scheme:light dark;--ink:#1b1f24;--soft:#57606a;--line:#d0d7de;--back:#fff;--card:#f6f8fa;--accent:#0b62c4}
@media (prefers-color-scheme:dark){:root{--ink:#e6edf3;--soft:#9aa5b1;--line:#30363d;--back:#0d1117;--card:#161b22;--accent:#6cb0ff}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:44rem;padding:1rem;background:var(--back);color:var(--ink);font:1rem/1.5 system-ui,sans-serif;overflow-wrap:anywhere}
h1{margin:.5rem 0 0;font-size:1.8rem}
h2{margin:2rem 0 .5rem;font-size:1.25rem;border-bottom:1px solid var(--line)}
h3{margin:0;font-size:1.05rem}
p{margin:.4rem 0}
small,.legend,header p,summary,dt{color:var(--soft)}
a{color:var(--accent)}
pre{margin:.5rem 0;padding:.7rem;background:var(--card);border:1px solid var(--line);border-radius:6px;overflow-x:auto}
code,pre,details p{font-family:ui-monospace,monospace;font-size:.85rem}
ol{list-style:none;margin:0;padding:0}
li{margin:.6rem 0;padding:.7rem;background:var(--card);border:1px solid var(--line);border-radius:6px}
dl{margin:.5rem 0}
dd{margin:0 0 .4rem}
summary{cursor:pointer;font-size:.9rem}
svg{display:block;max-width:100%;height:auto}
svg path{fill:none;stroke:var(--accent);stroke-width:2}
svg circle{fill:var(--ink)}
svg .full{fill:none;stroke:var(--accent);stroke-width:2}
svg circle.outside{fill:var(--back);stroke:var(--soft);stroke-width:2}
svg text{fill:var(--ink);font:15px system-ui,sans-serif}
svg text.outside{fill:var(--soft)}
`;

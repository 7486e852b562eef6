import type { Manifest } from "../bundle/manifest.js";
import { ZferryError } from "../errors.js";

// formats/chain.md. Pure: links and what a site has go in, the bundles to install come out.

/** One bundle, as its verified manifest or a signed index has it: what it leads from and to. */
export interface Link {
  /** SHA-256 of the bundle's `SHA256SUMS`. */
  readonly id: string;
  readonly product: string;
  readonly release: { readonly name: string; readonly sequence: number };
  /** Of the whole file. */
  readonly bytes: number;
  /** At least one, and none twice. `base` is null for a full stream; its snapshot is only for messages. */
  readonly streams: readonly {
    readonly role: string;
    readonly base: { readonly guid: string; readonly snapshot?: string | undefined } | null;
    readonly target: string;
  }[];
  /** The trees of `/`; `base` is null in a full bundle. Null where `/` does not change. */
  readonly root: { readonly base: string | null; readonly target: string } | null;
}

export const linkOf = (
  { product, release, streams, root }: Manifest,
  identity: string,
  bytes: number,
): Link => ({
  id: identity,
  product,
  release,
  bytes,
  streams: streams.map(({ role, base, target }) => ({ role, base: base ?? null, target: target.guid })),
  root: root === undefined ? null : { base: root.base?.tree ?? null, target: root.target.tree },
});

/** What a site has, as it judges a chain. */
export interface ChainStart {
  readonly product: string;
  /** Undefined where zferry installed nothing yet, or it is not known. */
  readonly installed: { readonly name: string; readonly sequence: number } | undefined;
  readonly highestSequence: number;
  /** Identities of the bundles that were accepted before: the sequence rule does not count for them. */
  readonly accepted: ReadonlySet<string>;
  /** For each role the guids that a stream may start from: none where there is no dataset yet. */
  readonly streams: ReadonlyMap<string, readonly string[]>;
  /** The tree of the release that `/` was made from; null where that is not known, and any fits. */
  readonly tree: string | null;
}

export interface ChainOptions {
  /** The name of the release that is wanted; the newest without it. */
  readonly to?: string | undefined;
  /** Whether the chain may begin with a bundle whose streams are all full. */
  readonly full?: boolean | undefined;
}

export interface Chain<Of extends Link> {
  /** In the order of installing; empty where there is nothing to do. */
  readonly links: readonly Of[];
  /** The release that the chain leads to, or that the site has. */
  readonly release: Link["release"];
  /** What cannot be installed here at all, and why, in words. */
  readonly left: readonly { readonly link: Of; readonly reason: string }[];
}

/** Points that bundles lead to; more only come of releases whose streams are updated apart from one another. */
const MAX_POINTS = 30_000;

/** Where a site can come, and the cheapest way there. */
interface Point<Of extends Link> {
  readonly guids: ReadonlyMap<string, string>;
  readonly tree: string | null;
  bytes: number;
  /** What leads here, and from where; undefined for what the site has. */
  last: { readonly link: Of; readonly from: Point<Of> } | undefined;
  links: number;
}

/**
 * The chain with the fewest bytes from what a site has to the newest release, or to the one that is wanted; of equal ones
 * the one with fewer bundles, then the one whose bundles come first by sequence number and identity.
 * @param links a bundle that is there twice counts once, the first
 * @throws ZferryError `chain-missing` with what is missing; `sequence-mismatch` for a release that the site has left behind
 */
export function chooseChain<Of extends Link>(
  links: readonly Of[],
  start: ChainStart,
  { to, full = false }: ChainOptions = {},
): Chain<Of> {
  const left: { link: Of; reason: string }[] = [];
  const sound: Of[] = [];
  for (const link of new Map(links.toReversed().map((each) => [each.id, each])).values()) {
    const reason = faultOf(link, start);
    if (reason === undefined) sound.push(link);
    else left.push({ link, reason });
  }
  left.sort((a, b) => inOrder(a.link, b.link));
  sound.sort(inOrder);
  const wanted = to === undefined ? sound : sound.filter(({ release }) => release.name === to);
  const goal = wanted.at(-1)?.release;
  const { installed } = start;
  if (goal === undefined) {
    if (to !== undefined && to === installed?.name) return { links: [], release: installed, left };
    throw new ZferryError(
      "chain-missing",
      links.length === 0
        ? `no bundle is here that counts, and this site has ${nameOf(start)}`
        : to === undefined
          ? `no bundle here is one for this site, which has ${nameOf(start)}`
          : `no bundle here leads to release ${to}, and this site has ${nameOf(start)}`,
      { details: { have: nameOf(start), ...(to === undefined ? {} : { wanted: to }) }, hint: CHAIN_HINT },
    );
  }
  if (installed !== undefined && goal.sequence <= installed.sequence) {
    if (to === undefined || to === installed.name) return { links: [], release: installed, left };
    throw new ZferryError(
      "sequence-mismatch",
      `release ${goal.name} has sequence number ${goal.sequence}, this site has ${nameOf(start)} with ${installed.sequence}`,
      {
        details: { found: goal.sequence, accepted: installed.sequence },
        hint: `a chain only leads forward; an older release is installed by its file, with --allow-downgrade ${goal.sequence}`,
      },
    );
  }

  const allowed = sound.filter((link) => isAccepted(link, start) && (full || !isFull(link)));
  const isGoal = ({ release }: Link): boolean =>
    release.sequence === goal.sequence && release.name === goal.name;
  const ends = sound.filter(isGoal);
  const found = pointsFrom(allowed, start, isGoal);
  if (found.goal === undefined) {
    const present = ends.some((link) => link.streams.every(({ role, target }) => has(start, role, target)));
    if (present) return { links: [], release: goal, left };
    throw missing(goal, { sound, allowed, ends, reached: found.reached }, start, to);
  }
  const chain: Of[] = [];
  for (let at = found.goal; at.last !== undefined; at = at.last.from) chain.unshift(at.last.link);
  return { links: chain, release: goal, left };
}

/** Ends with what to do where no chain is found. */
export const CHAIN_HINT = "bring the missing bundles, or have one made for this site: bundle request";

const nameOf = ({ installed }: ChainStart): string => installed?.name ?? "no known release";

const has = ({ streams }: ChainStart, role: string, guid: string): boolean =>
  streams.get(role)?.includes(guid) ?? false;

const inOrder = (a: Link, b: Link): number =>
  a.release.sequence - b.release.sequence || (a.id < b.id ? -1 : a.id > b.id ? 1 : 0);

const isFull = ({ streams }: Link): boolean => streams.every(({ base }) => base === null);

/** Why a bundle counts for nothing here, whichever way is looked for. */
function faultOf(link: Link, { product, streams }: ChainStart): string | undefined {
  if (link.product !== product) return `is for product ${link.product}, this site has ${product}`;
  if (new Set(link.streams.map(({ role }) => role)).size !== link.streams.length) {
    return "has a stream twice";
  }
  // A manifest that says so is refused; what an index says is somebody's word.
  if (link.streams.length === 0 || link.streams.some(({ base, target }) => base?.guid === target)) {
    return "leads to where it comes from";
  }
  const other = link.streams.find(({ role }) => !streams.has(role));
  return other && `has a stream ${other.role}, and this site has no dataset for it`;
}

/** Whether the sequence rule lets it be installed, as far as it is known before the chain begins. */
const isAccepted = ({ id, release }: Link, { highestSequence, accepted }: ChainStart): boolean =>
  release.sequence > highestSequence || accepted.has(id);

/** Goes through the bundles by sequence number: each must have a higher one than the one before it. */
function pointsFrom<Of extends Link>(
  links: readonly Of[],
  start: ChainStart,
  isGoal: (link: Of) => boolean,
): { readonly goal: Point<Of> | undefined; readonly reached: ReadonlySet<Of> } {
  const guids = new Map<string, string>();
  const first = new Map<string, string>();
  for (const [role, [guid, ...others]] of start.streams) {
    if (guid === undefined) continue;
    guids.set(role, guid);
    // Whichever of them a stream starts from, it starts from what is there.
    for (const other of others) first.set(pairOf(role, other), guid);
  }
  const origin: Point<Of> = { guids, tree: start.tree, bytes: 0, last: undefined, links: 0 };
  const points = new Map([[keyOf(guids, start.tree), origin]]);
  // Of all points those that a stream may start from, so that a bundle is held against few.
  const at = new Map<string, Point<Of>[]>();
  const index = (point: Point<Of>): void => {
    for (const [role, guid] of point.guids) {
      const pair = pairOf(role, guid);
      const known = at.get(pair);
      if (known === undefined) at.set(pair, [point]);
      else known.push(point);
    }
  };
  index(origin);

  let goal: Point<Of> | undefined;
  const reachable = new Set<Of>();
  const later = links.filter(({ release }) => release.sequence > (start.installed?.sequence ?? 0));
  for (let next = 0; next < later.length;) {
    const { sequence } = (later[next] as Of).release;
    const reached: { link: Of; from: Point<Of> }[] = [];
    for (; later[next]?.release.sequence === sequence; next += 1) {
      const link = later[next] as Of;
      const bases = link.streams.flatMap(({ role, base }) => {
        if (base === null) return [];
        const pair = pairOf(role, base.guid);
        return [{ role, guid: first.get(pair) ?? base.guid }];
      });
      const [based] = bases;
      const near = based === undefined ? [origin] : (at.get(pairOf(based.role, based.guid)) ?? []);
      const fits = ({ guids: have, tree }: Point<Of>): boolean =>
        bases.every(({ role, guid }) => have.get(role) === guid) &&
        link.streams.every(({ role, base }) => base !== null || !have.has(role)) &&
        (link.root === null || tree === null || link.root.base === null || link.root.base === tree);
      // As it is now: a bundle of the same number may make it cheaper, and cannot be on the way.
      for (const from of near) if (fits(from)) reached.push({ link, from: { ...from } });
    }
    for (const { link, from } of reached) {
      reachable.add(link);
      const to = new Map(from.guids);
      for (const { role, target } of link.streams) to.set(role, target);
      const point: Point<Of> = {
        guids: to,
        tree: link.root?.target ?? from.tree,
        bytes: from.bytes + link.bytes,
        last: { link, from },
        links: from.links + 1,
      };
      if (isGoal(link) && (goal === undefined || isCheaper(point, goal))) goal = point;
      const key = keyOf(point.guids, point.tree);
      const known = points.get(key);
      if (known === undefined) {
        if (points.size === MAX_POINTS) {
          throw new ZferryError(
            "chain-missing",
            `the bundles here can be installed in more than ${MAX_POINTS} ways`,
            { hint: "put those that are meant into a folder of their own, or install them by name" },
          );
        }
        points.set(key, point);
        index(point);
      } else if (isCheaper(point, known)) {
        known.bytes = point.bytes;
        known.last = point.last;
        known.links = point.links;
      }
    }
  }
  return { goal, reached: reachable };
}

const isCheaper = (a: Point<Link>, b: Point<Link>): boolean =>
  a.bytes < b.bytes || (a.bytes === b.bytes && a.links < b.links);

const pairOf = (role: string, guid: string): string => `${role} ${guid}`;

const keyOf = (guids: ReadonlyMap<string, string>, tree: string | null): string =>
  [...guids]
    .map(([role, guid]) => pairOf(role, guid))
    .sort()
    .concat(tree ?? "-")
    .join("\n");

/** Looks back from the end to where the bundles that are there begin, and tells the gap between that and the site. */
function missing<Of extends Link>(
  goal: Link["release"],
  {
    sound,
    allowed,
    ends,
    reached,
  }: {
    readonly sound: readonly Of[];
    readonly allowed: readonly Of[];
    readonly ends: readonly Of[];
    readonly reached: ReadonlySet<Of>;
  },
  start: ChainStart,
  to: string | undefined,
): ZferryError {
  const have = nameOf(start);
  const farthest = [...reached].sort(inOrder).at(-1)?.release.name;
  const short = farthest === undefined ? "" : `; as far as what is here leads: --to ${farthest}`;
  const which = to === undefined ? `the newest here, ${goal.name},` : `release ${goal.name}`;
  const open = allowed.filter((link) => ends.includes(link));
  if (open.length === 0) {
    if (ends.some((link) => isAccepted(link, start))) {
      return new ZferryError(
        "chain-missing",
        `you have ${have}, and ${which} is here as a full bundle only`,
        {
          details: { have, wanted: goal.name },
          hint: `${FULL_HINT}${short}`,
        },
      );
    }
    return new ZferryError(
      "sequence-mismatch",
      `${which} has sequence number ${goal.sequence}, this site has accepted ${start.highestSequence} already`,
      {
        details: { found: goal.sequence, accepted: start.highestSequence },
        hint: `if you want this older release: bundle install FILE --allow-downgrade ${goal.sequence}`,
      },
    );
  }
  const leadingTo = new Map<string, Of[]>();
  for (const link of allowed) {
    for (const { role, target } of link.streams) {
      const pair = pairOf(role, target);
      const others = leadingTo.get(pair);
      if (others === undefined) leadingTo.set(pair, [link]);
      else others.push(link);
    }
  }
  const seen = new Set<Of>();
  const beginnings: Of[] = [];
  for (let link = open.pop(); link !== undefined; link = open.pop()) {
    if (seen.has(link)) continue;
    seen.add(link);
    const { sequence } = link.release;
    const before = link.streams
      .flatMap(({ role, base }) => (base === null ? [] : (leadingTo.get(pairOf(role, base.guid)) ?? [])))
      .filter((each) => each.release.sequence < sequence && !reached.has(each));
    if (before.length === 0) beginnings.push(link);
    for (const each of before) if (!seen.has(each)) open.push(each);
  }
  // The nearest: the least is missing before it.
  const [nearest] = beginnings.sort(inOrder) as [Of, ...Of[]];
  const needs = baseOf(nearest, sound, start);
  const last = farthest ?? have;
  const isUnknown = start.installed === undefined && farthest === undefined;
  const isByFull = sound.some(
    (link) => isFull(link) && !allowed.includes(link) && link.release.name === needs,
  );
  const leading = isByFull ? "a full bundle alone leads" : "no bundle here leads";
  let gap = isUnknown ? `${leading} to ${needs}` : `missing ${last}→${needs}`;
  if (isFull(nearest)) gap = "this site has datasets already, and a full bundle makes new ones";
  else if (needs === last) gap = `release ${nearest.release.name} here starts from another ${needs}`;
  return new ZferryError("chain-missing", `you have ${have}, ${which} needs ${needs}: ${gap}`, {
    details: { have, wanted: goal.name, needs, reached: last },
    hint: isUnknown && isByFull ? FULL_HINT : `${CHAIN_HINT}${short}`,
  });
}

export const FULL_HINT = "a full bundle makes the datasets of a new site: if this is one, --full";

/** What a bundle starts from: the release that leads there, or else the snapshot or guid. */
function baseOf({ streams }: Link, known: readonly Link[], start: ChainStart): string {
  const based = streams.find(({ base }) => base !== null);
  if (based?.base == null) return "a new site";
  const { role, base } = based;
  if (has(start, role, base.guid)) return nameOf(start);
  const leading = known.find((link) =>
    link.streams.some((each) => each.role === role && each.target === base.guid),
  );
  return leading?.release.name ?? base.snapshot ?? `guid ${base.guid}`;
}

import {
  formatBytes,
  formatDuration,
  printable,
  type ProgressOptions,
  type ProgressReport,
} from "../report.js";

/** Where progress is shown, and when it is. */
export interface ProgressDisplay {
  /** A terminal gets one line that is written again and again; anything else a new line now and then. */
  readonly terminal: boolean;
  /** Characters in a line of the terminal. */
  columns(): number;
  write(text: string): void;
  /** Milliseconds that only go up. */
  now(): number;
}

const REDRAW_MS = 200;
const LINE_MS = 10_000;
/** After so long a change of the rate is seen for two thirds. */
const RATE_MS = 5_000;
const CLEAR_LINE = "\r\u001b[K";

/** Tells bytes, rate and time left. Work that takes less than the time between two lines is told on a terminal only. */
export function progressOn({ terminal, columns, write, now }: ProgressDisplay): ProgressReport {
  const every = terminal ? REDRAW_MS : LINE_MS;
  let current: { what: string; at: number; done: number; rate: number | undefined } | undefined;
  let shown = 0;
  let drawn = false;

  const end = (): void => {
    if (drawn) write(CLEAR_LINE);
    drawn = false;
    current = undefined;
  };
  return {
    update(what, done, total, options = {}) {
      const at = now();
      if (current?.what !== what) {
        end();
        current = { what, at, done, rate: undefined };
        // Nothing is known of the rate yet.
        shown = at;
        return;
      }
      if (at - shown < every) return;
      const elapsed = at - current.at;
      const latest = ((done - current.done) / elapsed) * 1000;
      const weight = 1 - Math.exp(-elapsed / RATE_MS);
      const rate = current.rate === undefined ? latest : current.rate + weight * (latest - current.rate);
      current = { what, at, done, rate };
      shown = at;
      const forms = describe(what, done, total, rate, options).map(printable);
      const fits = forms.find((line) => !terminal || line.length < columns()) ?? forms.at(-1) ?? "";
      write(terminal ? `${CLEAR_LINE}${fits.slice(0, columns() - 1)}` : `${fits}\n`);
      drawn = terminal;
    },
    end,
  };
}

/** The line, and shorter forms of it. */
function describe(
  what: string,
  done: number,
  total: number | undefined,
  rate: number,
  { unit, files }: ProgressOptions,
): string[] {
  const amount = (value: number): string => (unit === undefined ? formatBytes(value) : String(value));
  const speed = `${amount(Math.round(rate))}${unit === undefined ? "" : ` ${unit}`}/s`;
  const beside = files === undefined ? "" : `${files.done} of ${files.total} files, `;
  // An estimate that turned out too low says nothing any more.
  if (total === undefined || total === 0 || done > total) {
    return [`${what}: ${beside}${amount(done)}, ${speed}`, `${what}: ${amount(done)}`];
  }
  const percent = Math.floor((done / total) * 100);
  const left = rate > 0 ? `, ${formatDuration((total - done) / rate)} left` : "";
  return [
    `${what}: ${beside}${amount(done)} of ${amount(total)} (${percent} %), ${speed}${left}`,
    ...(files === undefined ? [] : [`${what}: ${files.done} of ${files.total} files (${percent} %)${left}`]),
    `${what}: ${percent} %${left}`,
    `${percent} %`,
  ];
}

import { formatTime, printable } from "../report.js";

// formats/environments.md, On trial: what the properties of an environment say, and what follows from that.

/** The properties of a trial, as an environment has them itself; empty for none. */
export interface TrialValues {
  readonly trial: string;
  readonly boots: string;
  readonly previous: string;
}

/** An environment that is still to be confirmed. */
export interface Trial {
  /** How often it may boot. */
  readonly allowed: number;
  /** How often it did, this boot included. */
  readonly counted: number;
  /** The guid of the environment to go back to; null for none. */
  readonly previous: string | null;
}

const COUNT = /^(?:0|[1-9][0-9]?)$/;

/** Undefined for what is not on trial. */
export function readTrial({ trial, boots, previous }: TrialValues): Trial | undefined {
  if (!COUNT.test(trial) || trial === "0") return undefined;
  return {
    allowed: Number(trial),
    counted: COUNT.test(boots) ? Number(boots) : 0,
    previous: /^[0-9]{1,20}$/.test(previous) ? previous : null,
  };
}

/** Why a trial ended with going back. */
export interface TrialFailure {
  /** Seconds since 1970, by the clock of the machine as it was then; 0 where it had none. */
  readonly at: number;
  /** A sentence. */
  readonly reason: string;
}

const MAX_REASON = 500;

export const writeFailure = ({ at, reason }: TrialFailure): string =>
  `${at} ${printable(reason.replace(/\s+/g, " ")).slice(0, MAX_REASON)}`;

/** Undefined for a property that is not set, or malformed. */
export function readFailure(value: string): TrialFailure | undefined {
  const [, at, reason = ""] = /^([0-9]{1,11}) (.+)$/.exec(value) ?? [];
  return at === undefined ? undefined : { at: Number(at), reason };
}

/** "at 2026-11-27 03:12:05 UTC: its 2 boots were not confirmed" */
export const describeFailure = ({ at, reason }: TrialFailure): string =>
  at === 0 ? reason : `at ${formatTime(at)}: ${reason}`;

/** What is known of a boot when its system is up, or is not. */
export interface BootFacts {
  readonly trial: Trial | undefined;
  /** Whether the environment to go back to is there. */
  readonly hasPrevious: boolean;
  /** Seconds that it has been looked after. */
  readonly watched: number;
  /** Seconds of that after which a boot counts as failed. */
  readonly deadline: number;
  /** What is not as it should be; undefined where all is. */
  readonly fault: string | undefined;
}

/**
 * `none`: nothing is on trial. `confirm`: it is kept. `wait`: it is looked at again. `go-back`: the environment before boots again.
 * `stay`: it would, and is not there.
 */
export type Verdict = "none" | "confirm" | "wait" | "go-back" | "stay";

export function judgeBoot({ trial, hasPrevious, watched, deadline, fault }: BootFacts): Verdict {
  if (trial === undefined) return "none";
  const isSpent = trial.counted > trial.allowed;
  if (!isSpent && fault === undefined) return "confirm";
  if (!isSpent && watched < deadline) return "wait";
  return hasPrevious ? "go-back" : "stay";
}

import { datasetExists, dropProperties, ownProperties, setProperty } from "../system/zfs.js";

// What an environment tells of a merge of what was changed in the one before: formats/environments.md, Properties

const MARK = "zferry:merge";
const WANTED = "wanted";

/** Has the merge begin at the latest when the unit runs again, whatever ends this run. */
export const wantMerge = (dataset: string): Promise<void> => setProperty(dataset, MARK, WANTED);

/** @param difference tells it from any other */
export const rememberMerge = (dataset: string, difference: string): Promise<void> =>
  setProperty(dataset, MARK, difference);

export const isMergeWanted = async (dataset: string): Promise<boolean> =>
  (await readMark(dataset)) === WANTED;

/** Whether this difference is what was merged last. */
export const isMerged = async (dataset: string, difference: string): Promise<boolean> =>
  (await readMark(dataset)) === difference;

/**
 * A merge that was given up, or refused, is not begun again by itself. What else was merged stays in mind.
 * @param difference of what was taken back
 */
export async function forgetMerge(dataset: string, difference?: string): Promise<void> {
  if (!(await datasetExists(dataset))) return;
  const mark = await readMark(dataset);
  if (mark !== undefined && [WANTED, difference].includes(mark)) await dropProperties(dataset, [MARK]);
}

const readMark = async (dataset: string): Promise<string | undefined> => (await ownProperties(dataset))[MARK];

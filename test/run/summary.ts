/**
 * summary.ts PARTS: of vitest's reports in the folder ZFERRY_REPORTS, the longest suites, what failed, and the number of
 * tests. PARTS is the number of parts of the run that failed.
 */
import { readdirSync, readFileSync } from "node:fs";
import { basename, relative } from "node:path";
import type { JsonTestResults } from "vitest/reporters";

/** Seconds from which a suite is named. */
const LONG = 60;
/** Lines of a failure that are shown here; the rest is further up. */
const LINES = 25;

const folder = process.env["ZFERRY_REPORTS"] ?? "";
const reports = readdirSync(folder).map((file) => {
  const report = JSON.parse(readFileSync(`${folder}/${file}`, "utf8")) as JsonTestResults;
  return { run: basename(file, ".json"), report };
});
const suites = reports.flatMap(({ run, report }) =>
  report.testResults.map((suite) => ({
    title: `${run}: ${relative(process.cwd(), suite.name)}`,
    seconds: Math.round((suite.endTime - suite.startTime) / 1000),
    message: suite.message,
    failed: suite.assertionResults.filter(({ status }) => status === "failed"),
  })),
);

function fault(title: string, message: string): void {
  const lines = message.split("\n").slice(0, LINES);
  console.log(`\nFAILED ${title}\n${lines.map((line) => `    ${line}`).join("\n")}`);
}

console.log(`\nsuites of more than ${LONG} s`);
for (const { title, seconds } of suites.toSorted((a, b) => b.seconds - a.seconds)) {
  if (seconds > LONG) console.log(`${String(seconds).padStart(6)} s  ${title}`);
}
for (const { title, message, failed } of suites) {
  if (failed.length === 0 && message) fault(title, message);
  for (const { fullName, failureMessages } of failed)
    fault(`${title}: ${fullName}`, (failureMessages ?? []).join("\n"));
}

const sum = (field: "numPassedTests" | "numFailedTests" | "numPendingTests" | "numTodoTests"): number =>
  reports.reduce((total, { report }) => total + report[field], 0);
const passed = sum("numPassedTests");
// A part can also fail without a failed test: a type error, an image that does not build, a suite that does not start.
const failed = Math.max(sum("numFailedTests"), Number(process.argv[2]));
const skipped = sum("numPendingTests") + sum("numTodoTests");
console.log(`\n${passed} passed, ${failed} failed${skipped === 0 ? "" : `, ${skipped} skipped`}`);
process.exitCode = failed === 0 && passed > 0 ? 0 : 1;

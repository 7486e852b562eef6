import { expect, it } from "vitest";
import { reworded, throwAll, ZferryError } from "../../src/errors.js";
import { inWords } from "../../src/install/site-root.js";

const FOLDER = "/run/zferry-AbCdEf";

it.each([
  [`the repository ${FOLDER}/.git is locked`, "", "the repository /.git is locked"],
  [`git -C ${FOLDER} commit`, "", "git -C / commit"],
  [`git -C ${FOLDER} commit`, "/srv/site", "git -C /srv/site commit"],
  [`${FOLDER}/etc and ${FOLDER}`, "rpool/ROOT/R2:", "rpool/ROOT/R2:/etc and rpool/ROOT/R2:"],
])("names %s by its place in %j", (text, shown, named) => {
  expect(inWords(text, FOLDER, shown)).toBe(named);
});

it("tells what is found twice once", () => {
  const [one, two] = ["one", "two"].map((message) => new ZferryError("io-failed", message));
  const error = new ZferryError("io-failed", "one", { also: [new ZferryError("no-space", "three")] });
  const thrown = (): void => throwAll([one as ZferryError, two as ZferryError, error]);
  expect(thrown).toThrow(
    expect.objectContaining({
      message: "one",
      also: [expect.objectContaining({ message: "two" }), expect.objectContaining({ message: "three" })],
    }),
  );
});

it("rewords all of an error", () => {
  const fault = new ZferryError("io-failed", "a", {
    details: { path: "a", bytes: 1, paths: ["a", "b"] },
    hint: "a",
    also: [new ZferryError("no-space", "a")],
  });
  expect(reworded(fault, (text) => text.replace("a", "c"))).toMatchObject({
    code: "io-failed",
    message: "c",
    details: { path: "c", bytes: 1, paths: ["c", "b"] },
    hint: "c",
    also: [{ code: "no-space", message: "c" }],
  });
});

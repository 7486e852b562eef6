import { expect, test } from "vitest";
import { parseVolumeName, volumeName } from "../../src/bundle/volumes.js";

test("a volume's name has the bundle's and three digits", () => {
  expect([1, 42, 999].map((number) => volumeName("R2.bundle", number))).toEqual([
    "R2.bundle.001",
    "R2.bundle.042",
    "R2.bundle.999",
  ]);
  expect(parseVolumeName("/media/stick/R2.bundle.042")).toEqual({
    bundle: "/media/stick/R2.bundle",
    number: 42,
  });
  expect(parseVolumeName("a\nb.001")).toEqual({ bundle: "a\nb", number: 1 });
});

test.each([
  "R2.bundle",
  "R2.bundle.1",
  "R2.bundle.0001",
  "R2.bundle.000",
  ".001",
  "a/.001",
  "R2.bundle.001x",
])("%s is no volume's name", (name) => expect(parseVolumeName(name)).toBeUndefined());

import { expect, test } from "vitest";
import { outerFirst, parseProperties } from "../../src/system/zfs.js";

test("properties tell what is set on the dataset itself; a value may have tabs and line ends", () => {
  // zfs get -H -p -r -d 1 -t filesystem -o name,property,source,value
  const output = [
    "rpool/ROOT\tmountpoint\tlocal\tnone",
    "rpool/ROOT\tzferry:release\tlocal\tR1",
    "rpool/ROOT/one two\tmountpoint\tlocal\t/",
    "rpool/ROOT/one two\tzferry:release\tinherited from rpool/ROOT\tR1",
    "rpool/ROOT/two\tmountpoint\treceived\tlegacy",
    "rpool/ROOT/two\tzferry:release\tlocal\ta\tb",
    "c",
    "rpool/ROOT/two\tcanmount\tdefault\ton",
    "",
  ].join("\n");
  expect(parseProperties(output)).toEqual([
    {
      dataset: "rpool/ROOT",
      properties: {
        mountpoint: { value: "none", local: true },
        "zferry:release": { value: "R1", local: true },
      },
    },
    {
      dataset: "rpool/ROOT/one two",
      properties: {
        mountpoint: { value: "/", local: true },
        "zferry:release": { value: "R1", local: false },
      },
    },
    {
      dataset: "rpool/ROOT/two",
      properties: {
        mountpoint: { value: "legacy", local: false },
        "zferry:release": { value: "a\tb", local: true },
        canmount: { value: "on", local: false },
      },
    },
  ]);
});

test("what lies below another dataset comes after it, and all else stays in its order", () => {
  const named = (...names: string[]) => names.map((dataset) => ({ dataset }));
  expect(outerFirst(named("p/R1/usr/local", "p/R1/usr", "p/opt", "p/R1/a"))).toEqual(
    named("p/opt", "p/R1/usr", "p/R1/a", "p/R1/usr/local"),
  );
});

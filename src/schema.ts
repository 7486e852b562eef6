import * as v from "valibot";
import { parseCanonicalJson } from "./canonical-json.js";
import type { ZferryError } from "./errors.js";

/**
 * The value as `schema` has it, or in words the first thing that is wrong: the field's path, a colon, and what is
 * wrong with it.
 */
export function checkValue<Schema extends v.GenericSchema>(
  schema: Schema,
  value: unknown,
): { readonly value: v.InferOutput<Schema>; readonly fault?: never } | { readonly fault: string } {
  const parsed = v.safeParse(schema, value, { abortEarly: true, message: describe });
  if (parsed.success) return { value: parsed.output };
  const [outer] = parsed.issues;
  // Of a union's options, the one whose type the value has says what is wrong.
  const inner = outer.issues?.find((issue) => issue.kind === "validation" || isUnknownField(issue));
  const path = [...(outer.path ?? []), ...(inner?.path ?? [])].map(({ key }) => key);
  if (isUnknownField(inner ?? outer)) path.pop();
  return { fault: [path.join("."), (inner ?? outer).message].filter(Boolean).join(": ") };
}

/**
 * Parses canonical JSON that has the number of its form in `format`, which is judged before the rest.
 * @param form.judge what is looked at even before that; gives a fault in words
 * @param form.malformed makes the error of a fault; `unsupported` that of another form
 */
export function parseForm<Schema extends v.GenericSchema>(
  schema: Schema,
  bytes: Uint8Array,
  form: {
    readonly format: number;
    readonly maxMarks: number;
    readonly judge?: (value: object) => string | undefined;
    readonly malformed: (fault: string) => ZferryError;
    readonly unsupported: (found: number) => ZferryError;
  },
): v.InferOutput<Schema> {
  let value: unknown;
  try {
    value = parseCanonicalJson(bytes, form.maxMarks);
  } catch (error) {
    throw form.malformed(error instanceof Error ? error.message : String(error));
  }
  const found = typeof value === "object" && value !== null ? value : {};
  const early = form.judge?.(found);
  if (early !== undefined) throw form.malformed(early);
  if ("format" in found && typeof found.format === "number" && found.format !== form.format)
    throw form.unsupported(found.format);
  const checked = checkValue(schema, value);
  if (checked.fault !== undefined) throw form.malformed(checked.fault);
  return checked.value;
}

const isUnknownField = ({ expected }: v.BaseIssue<unknown>): boolean => expected === "never";

const KINDS: Record<string, string> = { record: "table", strict_object: "table", array: "list" };

/** What is wrong where a schema itself says nothing. */
function describe({ type, input, expected, requirement }: v.BaseIssue<unknown>): string {
  const unit = Array.isArray(input) ? " entries" : typeof input === "string" ? " characters" : "";
  switch (type) {
    case "literal":
    case "picklist":
      return `is not ${expected?.replace(/^\(|\)$/g, "").replaceAll(" | ", " or ")}`;
    case "safe_integer":
      if (!Number.isFinite(input)) return "is no number";
      if (!Number.isInteger(input)) return "is no whole number";
      return Number(input) > 0 ? `is over ${Number.MAX_SAFE_INTEGER}` : `is under ${Number.MIN_SAFE_INTEGER}`;
    case "max_code_points":
    case "max_length":
    case "max_value":
      return `is over ${String(requirement)}${unit}`;
    case "min_length":
    case "min_value":
      return `is under ${String(requirement)}${unit}`;
    case "check":
    case "regex":
      return "has not the form that it must have";
    case "union":
      return "Invalid input";
    default:
      return input === undefined ? "is missing" : `is no ${KINDS[type] ?? type}`;
  }
}

/** A whole number that every JSON reader has exactly. */
export const integer = (min: number, max = Number.MAX_SAFE_INTEGER) =>
  v.pipe(v.number(), v.safeInteger(), v.minValue(min), v.maxValue(max));

/** A list of at most so many entries. The library's own counts them after it has looked at each. */
export function list<Item extends v.GenericSchema>(
  item: Item,
  max: number,
): v.GenericSchema<v.InferInput<Item>[], v.InferOutput<Item>[]> {
  const limit = v.maxLength<v.InferOutput<Item>[], number>(max);
  const schema = v.pipe(v.array(item), limit);
  return {
    ...schema,
    "~run"(dataset, config) {
      const entries: unknown[] = Array.isArray(dataset.value) ? dataset.value : [];
      return entries.length > max
        ? limit["~run"]({ typed: true, value: entries }, config)
        : schema["~run"](dataset, config);
    },
  };
}

type Table<Entries extends v.ObjectEntries> = v.StrictObjectSchema<
  Entries,
  v.ErrorMessage<v.StrictObjectIssue>
>;

/** A table of these fields and no other. The library's own takes a list for one, too. */
export function table<const Entries extends v.ObjectEntries>(entries: Entries): Table<Entries> {
  const schema = v.strictObject(entries, (issue) => {
    const key = issue.path?.[0].key as string | undefined;
    if (key === undefined) return describe(issue);
    if (isUnknownField(issue)) return `has the unknown field ${JSON.stringify(key)}`;
    const missing = v.safeParse(entries[key] as v.GenericSchema, undefined, { message: describe });
    return missing.issues?.[0].message ?? describe(issue);
  });
  return {
    ...schema,
    "~run": (dataset, config) =>
      schema["~run"](Array.isArray(dataset.value) ? { value: null } : dataset, config),
  };
}

/** A table of any fields with such names and values. The library's own takes a list for one, and skips `constructor`. */
export function record<Value extends v.GenericSchema>(
  key: v.GenericSchema<string>,
  value: Value,
): v.GenericSchema<Record<string, v.InferInput<Value>>, Record<string, v.InferOutput<Value>>> {
  const schema = v.record(key, value);
  return {
    ...schema,
    "~run"(dataset, config) {
      const input = dataset.value;
      if (input === undefined) return schema["~run"](dataset, config);
      if (!isPlainObject(input)) return schema["~run"]({ value: null }, config);
      const output: Record<string, v.InferOutput<Value>> = {};
      for (const [name, field] of Object.entries(input)) {
        const named = key["~run"]({ value: name }, config);
        const result = named.issues ? named : value["~run"]({ value: field }, config);
        if (result.issues) {
          const [issue] = result.issues;
          const item = { type: "object", origin: "value", input, key: name, value: field } as const;
          return {
            typed: false,
            value: output,
            issues: [{ ...issue, path: [item, ...(issue.path ?? [])] }],
          };
        }
        // Assigned, a field __proto__ would be none.
        Object.defineProperty(output, name, {
          value: result.value,
          enumerable: true,
          writable: true,
          configurable: true,
        });
      }
      return { typed: true, value: output };
    },
  };
}

function isPlainObject(value: unknown): value is Record<string, unknown> {
  if (typeof value !== "object" || value === null) return false;
  const prototype: unknown = Object.getPrototypeOf(value);
  return prototype === null || prototype === Object.prototype;
}

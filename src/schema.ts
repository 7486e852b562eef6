import { z } from "zod";

/**
 * The value as `schema` has it, or in words the first thing that is wrong: the field's path, a colon, and what is
 * wrong with it.
 */
export function checkValue<Schema extends z.ZodType>(
  schema: Schema,
  value: unknown,
): { readonly value: z.infer<Schema>; readonly fault?: never } | { readonly fault: string } {
  const parsed = schema.safeParse(value, { error: describe });
  if (parsed.success) return { value: parsed.data };
  const issue = parsed.error.issues[0];
  return { fault: [issue?.path.join("."), issue?.message].filter(Boolean).join(": ") };
}

const KINDS: Record<string, string> = {
  int: "whole number",
  record: "table",
  object: "table",
  array: "list",
};

/** What the library says where a schema itself says nothing. */
const describe: z.core.$ZodErrorMap = (issue) => {
  switch (issue.code) {
    case "invalid_type":
      return issue.input === undefined ? "is missing" : `is no ${KINDS[issue.expected] ?? issue.expected}`;
    case "unrecognized_keys":
      return `has the unknown field ${JSON.stringify(issue.keys[0])}`;
    case "too_big":
      return `is over ${issue.maximum}${UNITS[issue.origin] ?? ""}`;
    case "too_small":
      return `is under ${issue.minimum}${UNITS[issue.origin] ?? ""}`;
    case "invalid_value":
      return `is not ${issue.values.map((each) => JSON.stringify(each)).join(" or ")}`;
    case "invalid_format":
      return "has not the form that it must have";
    case "invalid_key":
      return issue.issues[0]?.message;
    default:
      return undefined;
  }
};

const UNITS: Record<string, string> = { string: " characters", array: " entries" };

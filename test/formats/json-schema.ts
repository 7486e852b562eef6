import { toJsonSchema, type JsonSchema } from "@valibot/to-json-schema";
import type { GenericSchema } from "valibot";

/** The JSON Schema of one of the code's own. */
export function jsonSchema(schema: GenericSchema): JsonSchema {
  const { $schema, ...rest } = toJsonSchema(schema, {
    target: "draft-2020-12",
    // What only code can say.
    ignoreActions: ["check"],
    overrideSchema({ valibotSchema, jsonSchema: { required, ...rest } }) {
      if (valibotSchema.type === "literal") return { type: "number", ...rest };
      return required?.length === 0 ? rest : undefined;
    },
    overrideAction({ valibotAction, jsonSchema }) {
      const limit = "requirement" in valibotAction ? valibotAction.requirement : undefined;
      if (valibotAction.type === "max_code_points") return { ...jsonSchema, maxLength: limit as number };
      if (!(limit instanceof RegExp)) return undefined;
      const { pattern, ...rest } = jsonSchema;
      return pattern === undefined || pattern === limit.source
        ? { ...rest, pattern: limit.source }
        : { ...rest, allOf: [{ pattern }, { pattern: limit.source }] };
    },
  });
  return { $schema, ...rest };
}

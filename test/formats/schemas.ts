// Writes the JSON Schemas of formats/ from the code's own: npx tsx test/formats/schemas.ts
import { writeFileSync } from "node:fs";
import { manifestSchema } from "../../src/bundle/manifest.js";
import { indexSchema } from "../../src/carry/index-format.js";
import { receiptSchema } from "../../src/carry/receipt.js";
import { requestSchema } from "../../src/carry/request.js";
import { seenSchema } from "../../src/carry/seen.js";
import { buildSchema, siteSchema } from "../../src/config.js";
import { jsonSchema } from "./json-schema.js";

const schemas = {
  manifest: manifestSchema,
  site: siteSchema,
  build: buildSchema,
  request: requestSchema,
  receipt: receiptSchema,
  mirror: indexSchema,
  mirrors: seenSchema,
};

for (const [name, schema] of Object.entries(schemas)) {
  const text = JSON.stringify(jsonSchema(schema), null, 2);
  writeFileSync(new URL(`../../formats/${name}.schema.json`, import.meta.url), `${text}\n`);
}

// Writes the JSON Schemas of formats/ from the code's own: npx tsx test/formats/schemas.ts
import { writeFileSync } from "node:fs";
import { z } from "zod";
import { manifestSchema } from "../../src/bundle/manifest.js";
import { buildSchema, siteSchema } from "../../src/config.js";

const schemas = { manifest: manifestSchema, site: siteSchema, build: buildSchema };

for (const [name, schema] of Object.entries(schemas)) {
  const text = JSON.stringify(z.toJSONSchema(schema, { io: "input" }), null, 2);
  writeFileSync(new URL(`../../formats/${name}.schema.json`, import.meta.url), `${text}\n`);
}

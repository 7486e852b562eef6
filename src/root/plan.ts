import { z } from "zod";
import { gitIdSchema, gitModeSchema, xattrsSchema } from "./metadata.js";
import { pathNameSchema } from "./paths.js";

const attributesSchema = z.strictObject({
  uid: z.int().min(0),
  gid: z.int().min(0),
  permissions: z.int().min(0).max(0o7777),
  xattrs: xattrsSchema,
});

const stateSchema = z.strictObject({ mode: gitModeSchema, blob: gitIdSchema, attributes: attributesSchema });

/** For the installer's journal, which keeps a plan as JSON. */
export const rootPlanSchema = z.strictObject({
  format: z.literal(1),
  /** The site's HEAD when the plan was made. */
  head: gitIdSchema,
  /** The branch that HEAD names, as `refs/heads/…`; null when it names the commit itself. */
  branch: z.string().nullable(),
  /** What HEAD becomes: the merge of the site's commit and the release. */
  mergeCommit: gitIdSchema,
  /** The release as the build host has it, for `refs/zferry/release`; null where the site's copy is not known to be one. */
  releaseCommit: gitIdSchema.nullable(),
  /** What `refs/zferry/release` was. */
  previousRelease: gitIdSchema.nullable(),
  /** What changes on disk, sorted by path; null where there is nothing. */
  changes: z.array(
    z.strictObject({ path: pathNameSchema, before: stateSchema.nullable(), after: stateSchema.nullable() }),
  ),
  /** Directories made (`before` null), removed if empty (`after` null) or with other attributes, sorted by path. */
  directories: z.array(
    z.strictObject({
      path: pathNameSchema,
      before: attributesSchema.nullable(),
      after: attributesSchema.nullable(),
    }),
  ),
});

/** Everything that installing the root half changes on a site, decided before anything is. */
export type RootPlan = z.infer<typeof rootPlanSchema>;

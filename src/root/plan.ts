import * as v from "valibot";
import { integer, table } from "../schema.js";
import { gitIdSchema, gitModeSchema, xattrsSchema } from "./metadata.js";
import { pathNameSchema } from "./paths.js";

const attributesSchema = table({
  uid: integer(0),
  gid: integer(0),
  permissions: integer(0, 0o7777),
  xattrs: xattrsSchema,
});

const stateSchema = table({
  mode: gitModeSchema,
  blob: gitIdSchema,
  attributes: attributesSchema,
  /** The first path of the changes that are one file on this side, of each of them; missing where it is alone. */
  link: v.optional(pathNameSchema),
});

const replacedSchema = table({
  /** Keeps the commit. */
  ref: v.string(),
  commit: gitIdSchema,
  /** What the reference was before. */
  previous: v.nullable(gitIdSchema),
  paths: v.array(pathNameSchema),
});

/** For the installer's journal, which keeps a plan as JSON. */
export const rootPlanSchema = table({
  format: v.literal(1),
  /** The site's HEAD when the plan was made. */
  head: gitIdSchema,
  /** The branch that HEAD names, as `refs/heads/…`; null when it names the commit itself. */
  branch: v.nullable(v.string()),
  /** What HEAD becomes: the merge of the site's commit and the release. */
  mergeCommit: gitIdSchema,
  /** The release as the build host has it, for `refs/zferry/release`; null where the site's copy is not known to be one. */
  releaseCommit: v.nullable(gitIdSchema),
  /** What `refs/zferry/release` was. */
  previousRelease: v.nullable(gitIdSchema),
  /** What the site had not committed, which is committed first; missing where that was nothing. */
  drift: v.optional(
    table({
      /** The child of `head`, and the first parent of `mergeCommit`. */
      commit: gitIdSchema,
      paths: v.array(pathNameSchema),
      /** Those that git's index has as the commit does. */
      staged: v.array(pathNameSchema),
    }),
  ),
  /** Untracked files that the release replaces, as a commit that has them; missing where it replaces none. */
  replaced: v.optional(replacedSchema),
  /** Of a rollback: what keeps the untracked files that come back; missing where there are none. */
  returning: v.optional(replacedSchema),
  /** Contents of files that no commit has; missing where there are none. */
  blobs: v.optional(v.array(gitIdSchema)),
  /** What changes on disk, sorted by path; null where there is nothing. */
  changes: v.array(
    table({ path: pathNameSchema, before: v.nullable(stateSchema), after: v.nullable(stateSchema) }),
  ),
  /** Directories made (`before` null), removed if empty (`after` null) or with other attributes, sorted by path. */
  directories: v.array(
    table({
      path: pathNameSchema,
      before: v.nullable(attributesSchema),
      after: v.nullable(attributesSchema),
    }),
  ),
});

/** Everything that installing the root half changes on a site, decided before anything is. */
export type RootPlan = v.InferOutput<typeof rootPlanSchema>;

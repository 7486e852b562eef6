import tseslint from "typescript-eslint";

// The layers: commands → build, install, carry → root → bundle, trust, stream; only system/ touches the machine.
// For each folder of src/, the other folders and top-level files that it may import.
const LAYERS = {
  commands: [
    "build",
    "install",
    "carry",
    "root",
    "bundle",
    "trust",
    "stream",
    "system",
    "config",
    "errors",
    "raw-path",
    "report",
    "schema",
  ],
  build: ["root", "bundle", "trust", "stream", "system", "config", "errors", "in-order", "report"],
  install: [
    "root",
    "bundle",
    "trust",
    "stream",
    "system",
    "config",
    "errors",
    "raw-path",
    "report",
    "schema",
  ],
  carry: [
    "install",
    "root",
    "bundle",
    "trust",
    "stream",
    "system",
    "canonical-json",
    "config",
    "errors",
    "in-order",
    "report",
    "schema",
  ],
  root: ["system", "canonical-json", "errors", "raw-path", "report", "schema"],
  bundle: ["trust", "stream", "canonical-json", "errors", "in-order", "schema"],
  stream: ["errors"],
  trust: ["errors"],
  system: ["bundle", "trust", "config", "errors", "raw-path", "report"],
};
const PURE = ["bundle", "stream", "trust"];
const MACHINE =
  "^(node:)?(fs|fs/promises|child_process|process|os|path|net|http|https|worker_threads|execa)$";

const layer = (name, allowed) => ({
  files: [`src/${name}/**/*.ts`],
  rules: {
    "no-restricted-imports": [
      "error",
      {
        patterns: [
          {
            regex: `^\\.\\./(?!(${allowed.join("|")})[./])`,
            message: `${name}/ may import ${allowed.join(", ")} only: see the layers in eslint.config.js`,
          },
          ...(PURE.includes(name)
            ? [
                {
                  regex: MACHINE,
                  message: `${name}/ is pure: bytes in, values out; only system/ touches the machine`,
                },
              ]
            : []),
        ],
      },
    ],
    ...(PURE.includes(name) ? { "no-restricted-globals": ["error", "process"] } : {}),
  },
});

export default tseslint.config(
  { ignores: ["dist/"] },
  ...tseslint.configs.recommendedTypeChecked,
  {
    languageOptions: {
      parserOptions: {
        projectService: { allowDefaultProject: ["eslint.config.js", "test/lab/*.mjs"] },
        tsconfigRootDir: import.meta.dirname,
      },
    },
    rules: {
      "@typescript-eslint/only-throw-error": "error",
      "@typescript-eslint/unbound-method": "off",
      "@typescript-eslint/require-await": "off",
      "@typescript-eslint/restrict-template-expressions": ["error", { allowNumber: true }],
    },
  },
  { files: ["eslint.config.js", "test/lab/*.mjs"], extends: [tseslint.configs.disableTypeChecked] },
  {
    files: ["src/**/*.ts"],
    rules: {
      "no-console": "error",
      "no-restricted-syntax": [
        "error",
        { selector: "ExportAllDeclaration", message: "no barrels" },
        { selector: "ExportDefaultDeclaration", message: "named exports only" },
      ],
    },
  },
  {
    files: ["src/{build,bundle,carry,commands,install,root,stream,trust}/**/*.ts"],
    rules: {
      "no-restricted-properties": [
        "error",
        { object: "Date", property: "now", message: "the clock is given" },
      ],
    },
  },
  ...Object.entries(LAYERS).map(([name, allowed]) => layer(name, allowed)),
);

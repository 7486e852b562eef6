// Volumes: a bundle's bytes in several files. formats/volumes.md has the names and sizes.

/** As formats/volumes.md lists them. */
export const VOLUME_LIMITS = {
  /** Number of volumes: names have three digits. */
  volumes: 999,
  /** Least bytes of the volumes that are written, but for the last. */
  volumeBytes: 4096,
} as const;

/** "R2.bundle", 3 → "R2.bundle.003" */
export const volumeName = (bundle: string, number: number): string =>
  `${bundle}.${String(number).padStart(3, "0")}`;

/** The bundle and the number that a volume's name or path says, or undefined for any other name. */
export function parseVolumeName(
  name: string,
): { readonly bundle: string; readonly number: number } | undefined {
  const [, bundle, digits] = /^(.*[^/])\.([0-9]{3})$/s.exec(name) ?? [];
  if (bundle === undefined || digits === undefined || digits === "000") return undefined;
  return { bundle, number: Number(digits) };
}

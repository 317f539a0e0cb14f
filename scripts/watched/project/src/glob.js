import { readdirSync } from 'node:fs';

export const globSync = (directory) =>
  readdirSync(directory, { recursive: true })
    .filter((name) => name.endsWith('.js'))
    .map((name) => new URL(name, directory).href);

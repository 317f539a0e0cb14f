// Runs all of lib, and stays, as a server would.
import { globSync } from './glob.js';
for (const name of globSync(new URL('lib/', import.meta.url))) await import(name);
console.log('started');
setInterval(() => {}, 1e6);

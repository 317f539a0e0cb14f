import watcher from '@parcel/watcher';
import { realpathSync } from 'node:fs';
await watcher.subscribe(realpathSync('.'), (error, events) => {
  if (error) throw error;
  for (const { type, path } of events) console.log(type, path);
});
console.log('ready');

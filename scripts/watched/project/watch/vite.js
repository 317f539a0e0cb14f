// A dev server and a browser's part in it: loads the page's modules, listens for updates, and loads what is updated.
import { createServer } from 'vite';
import WebSocket from 'ws';

const server = await createServer({
  configFile: false,
  cacheDir: process.env.WATCHED_OUT,
  optimizeDeps: { noDiscovery: true },
  server: { host: '127.0.0.1', port: 20000 + (process.pid % 20000) },
});
await server.listen();
const url = server.resolvedUrls.local[0];
const get = async (path) => (await fetch(new URL(path, url))).text();
const token = (await get('/@vite/client')).match(/wsToken = "([^"]+)"/)[1];
const load = async () => {
  const entry = await get('/src/vite.js');
  await Promise.all([...entry.matchAll(/"(\/src\/lib\/[^"]+)"/g)].map(([, path]) => get(path)));
};
await load();
const socket = new WebSocket(`${url.replace('http', 'ws')}?token=${token}`, 'vite-hmr');
socket.on('message', async (data) => {
  const message = JSON.parse(data);
  if (message.type === 'connected') return console.log('ready');
  if (message.type === 'full-reload') await load();
  for (const { path, timestamp } of message.updates ?? []) {
    const served = await get(`${path}?t=${timestamp}`);
    console.log('updated', path, served.includes('changed') ? 'served anew' : 'served as before');
  }
  console.log(message.type, message.path ?? '');
});

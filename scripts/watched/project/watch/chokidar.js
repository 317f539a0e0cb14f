import chokidar from 'chokidar';
chokidar
  .watch('src/lib', { ignoreInitial: true, usePolling: process.argv[2] === 'poll' })
  .on('all', (event, path) => console.log(event, path))
  .on('ready', () => console.log('ready'));

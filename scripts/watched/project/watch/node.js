import { watch } from 'node:fs';
watch('src/lib', { recursive: true }, (event, name) => console.log(event, `src/lib/${name}`));
setTimeout(() => console.log('ready'), 1000);

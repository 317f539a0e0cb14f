export const load = (name) => import(`./lib/${name}.js`);

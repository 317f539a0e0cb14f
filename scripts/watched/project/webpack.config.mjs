export default {
  mode: 'development',
  entry: './src/webpack.cjs',
  output: { path: process.env.WATCHED_OUT },
  stats: 'errors-only',
  infrastructureLogging: { level: 'error' },
  plugins: [{ apply: (compiler) => compiler.hooks.done.tap('told', () => console.log('built')) }],
};

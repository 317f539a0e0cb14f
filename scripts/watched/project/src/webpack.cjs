const context = require.context('./lib', true, /\.js$/);
context.keys().forEach(context);

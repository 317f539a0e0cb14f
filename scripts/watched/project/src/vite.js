import.meta.glob('./lib/**/*.js', { eager: true });
import.meta.hot.accept();

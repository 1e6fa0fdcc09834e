import react from "@vitejs/plugin-react";
import { defineConfig } from "vite";

const { TAILRACE_URL = "http://127.0.0.1:8000", TAILRACE_KEY = "none" } = process.env;

// The development server adds the key. In production your backend does it, and checks that the thread is the user's.
export default defineConfig({
  plugins: [react()],
  server: {
    proxy: {
      "/api": {
        target: TAILRACE_URL,
        changeOrigin: true,
        headers: { authorization: `Bearer ${TAILRACE_KEY}` },
        configure: (proxy) => {
          // Without this, Vite leaves the page's connection open when that to Tailrace is lost.
          proxy.on("proxyRes", (from, _, to) => from.on("close", () => from.complete || to.destroy()));
          // While Tailrace is away, Vite would answer 500, after which the page does not try again.
          proxy.on("error", (_error, _request, to) => to.destroy());
        },
      },
    },
  },
});

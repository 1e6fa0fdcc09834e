import react from "@vitejs/plugin-react";
import { defineConfig } from "vite";

const { TAILRACE_URL = "http://127.0.0.1:8000", TAILRACE_KEY = "none" } = process.env;

// The development server adds the key. In production your backend does it: ../fastapi_app.py, ../express, ../edge_proxy.js.
export default defineConfig({
  plugins: [react()],
  server: {
    proxy: {
      "/api/tailrace": {
        target: TAILRACE_URL,
        changeOrigin: true,
        rewrite: (path) => path.replace("/api/tailrace", ""),
        headers: { authorization: `Bearer ${TAILRACE_KEY}` },
        // Without this, Vite leaves the page's connection open when that to Tailrace is lost.
        configure: (proxy) => proxy.on("proxyRes", (from, _, to) => from.on("close", () => from.complete || to.destroy())),
      },
    },
  },
});

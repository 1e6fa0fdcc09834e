// A login that believes every name. Replace it by yours: the token is a JWT with the user in `sub`.
import { SignJWT } from "jose";

export async function POST(request) {
  const user = (await request.formData()).get("user");
  const token = await new SignJWT()
    .setProtectedHeader({ alg: "HS256" })
    .setIssuer("my-app")
    .setAudience("tailrace")
    // The prefix keeps users apart from tenants with the same name.
    .setSubject(`user:${user}`)
    .setExpirationTime("1h")
    .sign(new TextEncoder().encode(process.env.TAILRACE_JWT_SECRET));
  const headers = { location: "/", "set-cookie": `token=${token}; Path=/; HttpOnly; Secure; SameSite=Lax; Max-Age=3600` };
  return new Response(null, { status: 303, headers });
}

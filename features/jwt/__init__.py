"""JWTs of an external login, such as Supabase, Auth0 or Keycloak, as credentials in the headers."""

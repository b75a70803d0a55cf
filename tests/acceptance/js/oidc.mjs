// A real OpenID Connect provider for `auth_test.py`: its address, then the addresses that logins and logouts may lead to.
import crypto from "node:crypto";
import { Provider } from "oidc-provider";

const [issuer, callbacks, logouts] = [process.argv[2], process.argv[3].split(","), process.argv[4].split(",")];
const { privateKey } = crypto.generateKeyPairSync("rsa", { modulusLength: 2048 });

const provider = new Provider(issuer, {
  clients: [
    {
      client_id: "client",
      client_secret: "s3cret-of-the-client",
      token_endpoint_auth_method: "client_secret_post",
      grant_types: ["authorization_code", "refresh_token"],
      redirect_uris: callbacks,
      post_logout_redirect_uris: logouts,
    },
  ],
  jwks: { keys: [{ ...privateKey.export({ format: "jwk" }), kid: "first", use: "sig", alg: "RS256" }] },
  cookies: { keys: [crypto.randomBytes(32).toString("hex")] },
  claims: { openid: ["sub", "roles"], email: ["email"], profile: ["name"] },
  conformIdTokenClaims: false,
  pkce: { required: () => true },
  issueRefreshToken: async (_, client) => client.grantTypeAllowed("refresh_token"),
  findAccount: async (_, id) => ({
    accountId: id,
    claims: async () => ({ sub: id, roles: ["reader"], email: `${id}@example.test`, name: `${id} of the test` }),
  }),
});

provider.listen(Number(new URL(issuer).port), "127.0.0.1", () => console.log("ready"));

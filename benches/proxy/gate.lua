-- What a careful nginx operator would write by hand to do the gateway's work: verify the HS256
-- cookie (HMAC by OpenSSL), then ask Redis over a kept-alive connection whether its jti is revoked.
local ffi = require "ffi"
local redis = require "nginx.redis"
local cjson = require "cjson.safe"

ffi.cdef[[
typedef struct evp_md_st EVP_MD;
const EVP_MD *EVP_sha256(void);
unsigned char *HMAC(const EVP_MD *evp_md, const void *key, int key_len,
                    const unsigned char *d, size_t n, unsigned char *md, unsigned int *md_len);
]]
local crypto = ffi.load("libcrypto.so.3")
local digest = ffi.new("unsigned char[32]")
local digest_length = ffi.new("unsigned int[1]")

local function decode(text)
  text = text:gsub("-", "+"):gsub("_", "/")
  return ngx.decode_base64(text .. string.rep("=", (4 - #text % 4) % 4))
end

local M = {}

function M.check(secret, redis_port)
  local token = ngx.var.cookie_session
  if not token then return ngx.exit(401) end
  local signed, signature = token:match("^([%w_-]+%.[%w_-]+)%.([%w_-]+)$")
  if not signed then return ngx.exit(401) end
  crypto.HMAC(crypto.EVP_sha256(), secret, #secret, signed, #signed, digest, digest_length)
  if ffi.string(digest, 32) ~= decode(signature) then return ngx.exit(401) end
  local claims = cjson.decode(decode(signed:match("%.(.+)$")))
  if not claims or not claims.exp or claims.exp < ngx.time() then return ngx.exit(401) end
  local client = redis:new()
  client:set_timeout(1000)
  if not client:connect("127.0.0.1", redis_port) then return end
  local revoked = client:exists("revoked:" .. claims.jti)
  client:set_keepalive(60000, 64)
  if revoked == 1 or revoked == true then return ngx.exit(401) end
end

return M

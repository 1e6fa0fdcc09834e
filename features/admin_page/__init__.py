"""The page `/admin`: tenants, keys, limits, spend and the audit log in a browser, for keys with the scope `admin`."""

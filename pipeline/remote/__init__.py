"""Another machine, reached by OpenSSH: bundle and program go there, engines and reports come back; no flow, no gate."""

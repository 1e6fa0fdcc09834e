BEGIN TRANSACTION;
CREATE TABLE projects (
    tenant      TEXT NOT NULL,
    project     TEXT NOT NULL,
    name        TEXT NOT NULL,
    description TEXT,
    created_at  INTEGER NOT NULL,
    PRIMARY KEY (tenant, project)
) STRICT, WITHOUT ROWID;
CREATE TABLE sessions (
    tenant     TEXT NOT NULL,
    session    TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL, title TEXT, model TEXT, system TEXT, project TEXT, -- when a turn of it was last asked or ended
    PRIMARY KEY (tenant, session)
) STRICT, WITHOUT ROWID;
INSERT INTO "sessions" VALUES('local','01a1fb0a-2fe9-7da7-92bf-c269da2995bf',1795213111309619,1795213111532430,NULL,NULL,NULL,NULL);
INSERT INTO "sessions" VALUES('local','01a1fb0a-3117-7b2f-bc5f-d970e1d2ac6f',1795213111575551,1795213111591464,NULL,NULL,NULL,NULL);
INSERT INTO "sessions" VALUES('local','01a1fb0a-3149-79d8-a96c-5e297f246282',1795213111626262,1795213111664255,NULL,NULL,NULL,NULL);
INSERT INTO "sessions" VALUES('local','01a1fb0a-318b-7f77-9228-d90ec1b94bd5',1795213111692204,1795213111733553,NULL,NULL,NULL,NULL);
INSERT INTO "sessions" VALUES('local','01a1fb0a-31cc-7b71-bd10-f00dffab0162',1795213111757160,1795213111779048,NULL,NULL,NULL,NULL);
INSERT INTO "sessions" VALUES('local','01a1fb0a-31fd-7bbb-9e62-347eadc2a7fd',1795213111807448,1795213112075934,NULL,NULL,NULL,NULL);
INSERT INTO "sessions" VALUES('local','01a1fb0a-3330-75c2-a0cd-00108f9e7118',1795213112112554,1795213112326466,NULL,NULL,NULL,NULL);
INSERT INTO "sessions" VALUES('local','01a1fb0a-3f2b-756d-ac25-535587b1c41b',1795213115180386,1795213117504029,NULL,NULL,NULL,NULL);
CREATE TABLE turns (
    tenant      TEXT NOT NULL,
    turn        TEXT NOT NULL,
    session     TEXT NOT NULL,
    parent      TEXT, -- no foreign key: a database made anew from the log may not reach back to it
    model       TEXT NOT NULL,
    outcome     TEXT NOT NULL CHECK (outcome IN ('running', 'completed', 'cancelled', 'failed')),
    input       TEXT NOT NULL, -- JSON: the messages that this turn added to its session
    content     TEXT NOT NULL, -- JSON: the answer's content blocks
    text        TEXT NOT NULL,
    stop_reason TEXT,
    error       TEXT, -- JSON: code and message
    attempts    INTEGER NOT NULL,
    metadata    TEXT NOT NULL, -- JSON
    asked_at    INTEGER NOT NULL,
    ended_at    INTEGER,
    cursor      INTEGER NOT NULL, -- the sequence of the last entry that this row knows of
    text_chars  INTEGER, -- what the turn's end says of its text, so that an audit can prove the row
    text_sha256 TEXT, stop_sequence TEXT, envelope TEXT NOT NULL DEFAULT '{}',
    PRIMARY KEY (tenant, turn),
    FOREIGN KEY (tenant, session) REFERENCES sessions (tenant, session)
) STRICT;
INSERT INTO "turns" VALUES('local','01a1fb0a-2fe9-7662-b320-8fe626904c47','01a1fb0a-2fe9-7da7-92bf-c269da2995bf',NULL,'claude-sonnet-5-5','completed','[{"role":"user","content":"#sim words=6 rate=0"}]','[{"type":"text","text":"w000000 w000001 w000002 w000003 w000004 w000005"}]','w000000 w000001 w000002 w000003 w000004 w000005','end_turn',NULL,1,'{"of":"a client"}',1795213111309619,1795213111330328,8,47,'afdf7e1a6ff783fded0bd316c52bcc455ff79870d51d289a94abfb091c3d7a99',NULL,'{"usage":{"cache_creation":{"ephemeral_5m_input_tokens":0,"ephemeral_1h_input_tokens":0},"service_tier":"standard"}}');
INSERT INTO "turns" VALUES('local','01a1fb0a-3075-72e5-8d8e-9ba1c512f09d','01a1fb0a-2fe9-7da7-92bf-c269da2995bf','01a1fb0a-2fe9-7662-b320-8fe626904c47','claude-sonnet-5-5','completed','[{"role":"user","content":"#sim thinking=3 words=4 rate=0"}]','[{"type":"thinking","thinking":"t000000 t000001 t000002","signature":"sim3ee433940cc6d5e22311354c92bf57dbe8554b3198c34617f849f7ce238ff2cc"},{"type":"text","text":"w000000 w000001 w000002 w000003"}]','w000000 w000001 w000002 w000003','end_turn',NULL,1,'{}',1795213111424174,1795213111443597,20,31,'8438341658e2f7a37b7e1dc2d830804317ff21318af71b8be92701640610c685',NULL,'{"usage":{"cache_creation":{"ephemeral_5m_input_tokens":0,"ephemeral_1h_input_tokens":0},"service_tier":"standard"}}');
INSERT INTO "turns" VALUES('local','01a1fb0a-30d1-7f64-9943-6459676e1dc5','01a1fb0a-2fe9-7da7-92bf-c269da2995bf','01a1fb0a-3075-72e5-8d8e-9ba1c512f09d','claude-sonnet-5-5','completed','[{"role":"user","content":"#sim words=2 tool=look json={\"at\":\"the sky\"} rate=0"}]','[{"type":"text","text":"w000000 w000001"},{"type":"tool_use","id":"toolu_sim976977497b830cc58fa4","name":"look","input":{"at":"the sky"}}]','w000000 w000001','tool_use',NULL,1,'{}',1795213111509862,1795213111532430,31,15,'6b8ed62a00152b286d4f58725a14ede59a4ccad4a4f9fc23aafc864ba4a734c1',NULL,'{"usage":{"cache_creation":{"ephemeral_5m_input_tokens":0,"ephemeral_1h_input_tokens":0},"service_tier":"standard"}}');
INSERT INTO "turns" VALUES('local','01a1fb0a-3117-7ac7-b08a-ce49fd091262','01a1fb0a-3117-7b2f-bc5f-d970e1d2ac6f',NULL,'claude-sonnet-5-5','completed','[{"role":"user","content":"#sim words=3 cites=2 rate=0"}]','[{"type":"text","text":"w000000 w000001 w000002","citations":[{"type":"char_location","cited_text":"000000000.","document_index":0,"document_title":null,"start_char_index":0,"end_char_index":10,"file_id":null},{"type":"web_search_result_location","cited_text":"000000001.","url":"https://page.example/1","title":"Page 1","encrypted_index":"c2lt"}]}]','w000000 w000001 w000002','end_turn',NULL,1,'{}',1795213111575551,1795213111591464,41,23,'8eca02c04fab89e03d7d6aac88b791562745a4fefd7c28c330ac3c50944d7aec',NULL,'{"usage":{"cache_creation":{"ephemeral_5m_input_tokens":0,"ephemeral_1h_input_tokens":0},"service_tier":"standard"}}');
INSERT INTO "turns" VALUES('local','01a1fb0a-3149-7c11-b6a6-cadd4a4f85a5','01a1fb0a-3149-79d8-a96c-5e297f246282',NULL,'claude-sonnet-5-5','completed','[{"role":"user","content":"#sim words=9 rate=0 fault=cut@4x1"}]','[{"type":"text","text":"w000000 w000001 w000002 w000003 w000004 w000005 w000006 w000007 w000008"}]','w000000 w000001 w000002 w000003 w000004 w000005 w000006 w000007 w000008','end_turn',NULL,2,'{}',1795213111626262,1795213111664255,52,71,'f284a32a8e5a4806c44cde71b65ea7dbc94d7fb62e2dc658dec983eb22bfaf57',NULL,'{"usage":{"cache_creation":{"ephemeral_5m_input_tokens":0,"ephemeral_1h_input_tokens":0},"service_tier":"standard"}}');
INSERT INTO "turns" VALUES('local','01a1fb0a-318b-7bf7-8d57-e55bfadb1956','01a1fb0a-318b-7f77-9228-d90ec1b94bd5',NULL,'claude-sonnet-5-5','completed','[{"role":"user","content":"#sim words=7 rate=0 fault=cut@3x1"}]','[{"type":"text","text":"w000000 w000001 w000002 w000003 w000004 w000005 w000006"}]','w000000 w000001 w000002 w000003 w000004 w000005 w000006','end_turn',NULL,2,'{}',1795213111692204,1795213111733553,64,55,'6d750de6e71d0f1df6bd9166264d7458d44eb5fb4305f244cf6ba727524180f8',NULL,'{"usage":{"cache_creation":{"ephemeral_5m_input_tokens":0,"ephemeral_1h_input_tokens":0},"service_tier":"standard"}}');
INSERT INTO "turns" VALUES('local','01a1fb0a-31cc-7d75-bfaa-e2f3bdcdd7c7','01a1fb0a-31cc-7b71-bd10-f00dffab0162',NULL,'claude-sonnet-5-5','failed','[{"role":"user","content":"#sim words=8 rate=0 fault=cut@5x1"}]','[{"type":"text","text":"w000000 w000001 w000002 w000003 w000004"}]','w000000 w000001 w000002 w000003 w000004',NULL,'{"code":"interrupted","message":"the answer was broken off, and the turn asked not to go on from there; the last time: the model''s answer broke off: ReadError"}',1,'{}',1795213111757160,1795213111779048,70,39,'173bf03596201b065d017e85588d422a822bad36ac299d509a6e7ad7d1ff9ef0',NULL,'{"usage":{"cache_creation":{"ephemeral_5m_input_tokens":0,"ephemeral_1h_input_tokens":0},"service_tier":"standard"}}');
INSERT INTO "turns" VALUES('local','01a1fb0a-31fd-7454-81b9-910c327ccb53','01a1fb0a-31fd-7bbb-9e62-347eadc2a7fd',NULL,'claude-sonnet-5-5','failed','[{"role":"user","content":"#sim words=5 rate=0 fault=500@0"}]','[]','',NULL,'{"code":"backend_failed","message":"Internal server error"}',1,'{}',1795213111807448,1795213112075934,73,0,'e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855',NULL,'{}');
INSERT INTO "turns" VALUES('local','01a1fb0a-3330-7bfd-b4d0-6e6e3b992b27','01a1fb0a-3330-75c2-a0cd-00108f9e7118',NULL,'claude-sonnet-5-5','cancelled','[{"role":"user","content":"#sim words=900 rate=20"}]','[{"type":"text","text":"w000000 w000001 w000002 w000003 w000004"}]','w000000 w000001 w000002 w000003 w000004',NULL,NULL,1,'{}',1795213112112554,1795213112326466,83,39,'173bf03596201b065d017e85588d422a822bad36ac299d509a6e7ad7d1ff9ef0',NULL,'{"usage":{"cache_creation":{"ephemeral_5m_input_tokens":0,"ephemeral_1h_input_tokens":0},"service_tier":"standard"}}');
INSERT INTO "turns" VALUES('local','01a1fb0a-3f2b-71c2-96e5-4afec7980535','01a1fb0a-3f2b-756d-ac25-535587b1c41b',NULL,'claude-sonnet-5-5','completed','[{"role":"user","content":"#sim words=24 rate=10"}]','[{"type":"text","text":"w000000 w000001 w000002 w000003 w000004 w000005 w000006 w000007 w000008 w000009 w000010 w000011 w000012 w000013 w000014 w000015 w000016 w000017 w000018 w000019 w000020 w000021 w000022 w000023"}]','w000000 w000001 w000002 w000003 w000004 w000005 w000006 w000007 w000008 w000009 w000010 w000011 w000012 w000013 w000014 w000015 w000016 w000017 w000018 w000019 w000020 w000021 w000022 w000023','end_turn',NULL,1,'{}',1795213115180386,1795213117504029,113,191,'86b7b8f4249e7ac520880d0dcba1da4f99208acb4212212be55bcb09aa37a091',NULL,'{"usage":{"cache_creation":{"ephemeral_5m_input_tokens":0,"ephemeral_1h_input_tokens":0},"service_tier":"standard"}}');
CREATE TABLE usage (
    tenant                      TEXT NOT NULL,
    session                     TEXT NOT NULL,
    turn                        TEXT NOT NULL,
    input_tokens                INTEGER NOT NULL,
    output_tokens               INTEGER NOT NULL,
    cache_creation_input_tokens INTEGER NOT NULL,
    cache_read_input_tokens     INTEGER NOT NULL,
    is_estimated                INTEGER NOT NULL, -- 1: a call broke off before the model had counted its output
    cost_nusd                   INTEGER NOT NULL, messages INTEGER NOT NULL DEFAULT 0, model TEXT NOT NULL DEFAULT '', asked_at INTEGER NOT NULL DEFAULT 0, -- billionths of a dollar
    PRIMARY KEY (tenant, session, turn),
    FOREIGN KEY (tenant, turn) REFERENCES turns (tenant, turn)
) STRICT, WITHOUT ROWID;
INSERT INTO "usage" VALUES('local','01a1fb0a-2fe9-7da7-92bf-c269da2995bf','01a1fb0a-2fe9-7662-b320-8fe626904c47',5,6,0,0,0,70000,2,'claude-sonnet-5-5',1795213111309619);
INSERT INTO "usage" VALUES('local','01a1fb0a-2fe9-7da7-92bf-c269da2995bf','01a1fb0a-3075-72e5-8d8e-9ba1c512f09d',13,7,0,0,0,96000,2,'claude-sonnet-5-5',1795213111424174);
INSERT INTO "usage" VALUES('local','01a1fb0a-2fe9-7da7-92bf-c269da2995bf','01a1fb0a-30d1-7f64-9943-6459676e1dc5',23,4,0,0,0,86000,2,'claude-sonnet-5-5',1795213111509862);
INSERT INTO "usage" VALUES('local','01a1fb0a-3117-7b2f-bc5f-d970e1d2ac6f','01a1fb0a-3117-7ac7-b08a-ce49fd091262',4,3,0,0,0,38000,2,'claude-sonnet-5-5',1795213111575551);
INSERT INTO "usage" VALUES('local','01a1fb0a-3149-79d8-a96c-5e297f246282','01a1fb0a-3149-7c11-b6a6-cadd4a4f85a5',49,14,0,0,1,238000,2,'claude-sonnet-5-5',1795213111626262);
INSERT INTO "usage" VALUES('local','01a1fb0a-318b-7f77-9228-d90ec1b94bd5','01a1fb0a-318b-7bf7-8d57-e55bfadb1956',8,14,0,0,1,156000,2,'claude-sonnet-5-5',1795213111692204);
INSERT INTO "usage" VALUES('local','01a1fb0a-31cc-7b71-bd10-f00dffab0162','01a1fb0a-31cc-7d75-bfaa-e2f3bdcdd7c7',4,12,0,0,1,128000,2,'claude-sonnet-5-5',1795213111757160);
INSERT INTO "usage" VALUES('local','01a1fb0a-31fd-7bbb-9e62-347eadc2a7fd','01a1fb0a-31fd-7454-81b9-910c327ccb53',0,0,0,0,0,0,1,'claude-sonnet-5-5',1795213111807448);
INSERT INTO "usage" VALUES('local','01a1fb0a-3330-75c2-a0cd-00108f9e7118','01a1fb0a-3330-7bfd-b4d0-6e6e3b992b27',3,12,0,0,1,126000,2,'claude-sonnet-5-5',1795213112112554);
INSERT INTO "usage" VALUES('local','01a1fb0a-3f2b-756d-ac25-535587b1c41b','01a1fb0a-3f2b-71c2-96e5-4afec7980535',3,24,0,0,0,246000,2,'claude-sonnet-5-5',1795213115180386);
CREATE INDEX sessions_by_update ON sessions (tenant, updated_at, session);
CREATE INDEX turns_by_session ON turns (tenant, session, asked_at, turn);
CREATE INDEX sessions_by_project ON sessions (tenant, project, updated_at, session);
CREATE INDEX projects_by_creation ON projects (tenant, created_at, project);
CREATE INDEX usage_by_time ON usage (tenant, asked_at);
CREATE INDEX turns_by_parent ON turns (tenant, parent, turn);
CREATE INDEX turns_running ON turns (tenant, outcome, session) WHERE outcome = 'running';
COMMIT;
PRAGMA user_version = 3;

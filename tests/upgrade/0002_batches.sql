BEGIN TRANSACTION;
CREATE TABLE blob_releases (
    tenant TEXT NOT NULL,
    sha256 TEXT NOT NULL,
    PRIMARY KEY (tenant, sha256)
) STRICT, WITHOUT ROWID;
CREATE TABLE blob_uses (
    tenant TEXT NOT NULL,
    sha256 TEXT NOT NULL,
    turn   TEXT NOT NULL,
    PRIMARY KEY (tenant, sha256, turn)
) STRICT, WITHOUT ROWID;
INSERT INTO "blob_uses" VALUES('local','f31234a15b4aed3f10eb8c83a3600baa5d5202a6b8da58a35cd954638c7c180f','01a1fb0a-9c3f-7fb9-9b7f-1ea3f8940733');
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
INSERT INTO "sessions" VALUES('local','01a1fb0a-76e8-7f74-9169-6503086a84a0',1795213129476495,1795213130052336,NULL,NULL,NULL,NULL);
INSERT INTO "sessions" VALUES('local','01a1fb0a-7997-7469-b437-149f3ae62856',1795213130136256,1795213130162922,NULL,NULL,NULL,NULL);
INSERT INTO "sessions" VALUES('local','01a1fb0a-7a0c-7748-9fc0-c9e187ccd65a',1795213130255473,1795213130313142,NULL,NULL,NULL,NULL);
INSERT INTO "sessions" VALUES('local','01a1fb0a-7a97-785f-96f0-3fe01e3a9ff7',1795213130392178,1795213130448399,NULL,NULL,NULL,NULL);
INSERT INTO "sessions" VALUES('local','01a1fb0a-7b13-7375-9dbe-26e6f72d1695',1795213130519564,1795213130551899,NULL,NULL,NULL,NULL);
INSERT INTO "sessions" VALUES('local','01a1fb0a-7d84-70ee-8a3e-80fb57cb799f',1795213131141311,1795213131428977,NULL,NULL,NULL,NULL);
INSERT INTO "sessions" VALUES('local','01a1fb0a-80f1-76bb-91bb-ec9c21578cc8',1795213132019922,1795213132244454,NULL,NULL,NULL,NULL);
INSERT INTO "sessions" VALUES('local','01a1fb0a-9282-74d8-815a-e7f7ddbc80f5',1795213136514716,1795213138826584,NULL,NULL,NULL,NULL);
INSERT INTO "sessions" VALUES('local','01a1fb0a-9c3f-7742-b8e2-b03031ba3f5b',1795213139013847,1795213139439008,NULL,NULL,NULL,NULL);
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
    text_sha256 TEXT, stop_sequence TEXT, envelope TEXT NOT NULL DEFAULT '{}', fits INTEGER, batch TEXT,
    PRIMARY KEY (tenant, turn),
    FOREIGN KEY (tenant, session) REFERENCES sessions (tenant, session)
) STRICT;
INSERT INTO "turns" VALUES('local','01a1fb0a-76e8-78bc-a07a-62fd9a55eef8','01a1fb0a-76e8-7f74-9169-6503086a84a0',NULL,'claude-sonnet-5-5','completed','[{"role":"user","content":"#sim words=6 rate=0"}]','[{"type":"text","text":"w000000 w000001 w000002 w000003 w000004 w000005"}]','w000000 w000001 w000002 w000003 w000004 w000005','end_turn',NULL,1,'{"of":"a client"}',1795213129476495,1795213129809036,10,47,'afdf7e1a6ff783fded0bd316c52bcc455ff79870d51d289a94abfb091c3d7a99',NULL,'{"usage":{"cache_creation":{"ephemeral_5m_input_tokens":0,"ephemeral_1h_input_tokens":0},"service_tier":"standard"}}',NULL,NULL);
INSERT INTO "turns" VALUES('local','01a1fb0a-78cf-7e04-a766-b1f2c0e0c883','01a1fb0a-76e8-7f74-9169-6503086a84a0','01a1fb0a-76e8-78bc-a07a-62fd9a55eef8','claude-sonnet-5-5','completed','[{"role":"user","content":"#sim thinking=3 words=4 rate=0"}]','[{"type":"thinking","thinking":"t000000 t000001 t000002","signature":"sim3ee433940cc6d5e22311354c92bf57dbe8554b3198c34617f849f7ce238ff2cc"},{"type":"text","text":"w000000 w000001 w000002 w000003"}]','w000000 w000001 w000002 w000003','end_turn',NULL,1,'{}',1795213129941263,1795213129955912,22,31,'8438341658e2f7a37b7e1dc2d830804317ff21318af71b8be92701640610c685',NULL,'{"usage":{"cache_creation":{"ephemeral_5m_input_tokens":0,"ephemeral_1h_input_tokens":0},"service_tier":"standard"}}',NULL,NULL);
INSERT INTO "turns" VALUES('local','01a1fb0a-792b-7b80-b819-629a3f9ef1ef','01a1fb0a-76e8-7f74-9169-6503086a84a0','01a1fb0a-78cf-7e04-a766-b1f2c0e0c883','claude-sonnet-5-5','completed','[{"role":"user","content":"#sim words=2 tool=look json={\"at\":\"the sky\"} rate=0"}]','[{"type":"text","text":"w000000 w000001"},{"type":"tool_use","id":"toolu_sim976977497b830cc58fa4","name":"look","input":{"at":"the sky"}}]','w000000 w000001','tool_use',NULL,1,'{}',1795213130033894,1795213130052336,33,15,'6b8ed62a00152b286d4f58725a14ede59a4ccad4a4f9fc23aafc864ba4a734c1',NULL,'{"usage":{"cache_creation":{"ephemeral_5m_input_tokens":0,"ephemeral_1h_input_tokens":0},"service_tier":"standard"}}',NULL,NULL);
INSERT INTO "turns" VALUES('local','01a1fb0a-7997-78be-bd2f-103d97a92b78','01a1fb0a-7997-7469-b437-149f3ae62856',NULL,'claude-sonnet-5-5','completed','[{"role":"user","content":"#sim words=3 cites=2 rate=0"}]','[{"type":"text","text":"w000000 w000001 w000002","citations":[{"type":"char_location","cited_text":"000000000.","document_index":0,"document_title":null,"start_char_index":0,"end_char_index":10,"file_id":null},{"type":"web_search_result_location","cited_text":"000000001.","url":"https://page.example/1","title":"Page 1","encrypted_index":"c2lt"}]}]','w000000 w000001 w000002','end_turn',NULL,1,'{}',1795213130136256,1795213130162922,43,23,'8eca02c04fab89e03d7d6aac88b791562745a4fefd7c28c330ac3c50944d7aec',NULL,'{"usage":{"cache_creation":{"ephemeral_5m_input_tokens":0,"ephemeral_1h_input_tokens":0},"service_tier":"standard"}}',NULL,NULL);
INSERT INTO "turns" VALUES('local','01a1fb0a-7a0b-7267-8300-0d1e368a17b5','01a1fb0a-7a0c-7748-9fc0-c9e187ccd65a',NULL,'claude-sonnet-5-5','completed','[{"role":"user","content":"#sim words=9 rate=0 fault=cut@4x1"}]','[{"type":"text","text":"w000000 w000001 w000002 w000003 w000004 w000005 w000006 w000007 w000008"}]','w000000 w000001 w000002 w000003 w000004 w000005 w000006 w000007 w000008','end_turn',NULL,2,'{}',1795213130255473,1795213130313142,55,71,'f284a32a8e5a4806c44cde71b65ea7dbc94d7fb62e2dc658dec983eb22bfaf57',NULL,'{"usage":{"cache_creation":{"ephemeral_5m_input_tokens":0,"ephemeral_1h_input_tokens":0},"service_tier":"standard"}}',NULL,NULL);
INSERT INTO "turns" VALUES('local','01a1fb0a-7a97-7810-90ce-3dfbed00c84a','01a1fb0a-7a97-785f-96f0-3fe01e3a9ff7',NULL,'claude-sonnet-5-5','completed','[{"role":"user","content":"#sim words=7 rate=0 fault=cut@3x1"}]','[{"type":"text","text":"w000000 w000001 w000002 w000003 w000004 w000005 w000006"}]','w000000 w000001 w000002 w000003 w000004 w000005 w000006','end_turn',NULL,2,'{}',1795213130392178,1795213130448399,67,55,'6d750de6e71d0f1df6bd9166264d7458d44eb5fb4305f244cf6ba727524180f8',NULL,'{"usage":{"cache_creation":{"ephemeral_5m_input_tokens":0,"ephemeral_1h_input_tokens":0},"service_tier":"standard"}}',NULL,NULL);
INSERT INTO "turns" VALUES('local','01a1fb0a-7b13-7c9a-b857-bf8e76779f78','01a1fb0a-7b13-7375-9dbe-26e6f72d1695',NULL,'claude-sonnet-5-5','failed','[{"role":"user","content":"#sim words=8 rate=0 fault=cut@5x1"}]','[{"type":"text","text":"w000000 w000001 w000002 w000003 w000004"}]','w000000 w000001 w000002 w000003 w000004',NULL,'{"code":"interrupted","message":"the answer was broken off, and the turn asked not to go on from there; the last time: the model''s answer broke off: ReadError"}',1,'{}',1795213130519564,1795213130551899,73,39,'173bf03596201b065d017e85588d422a822bad36ac299d509a6e7ad7d1ff9ef0',NULL,'{"usage":{"cache_creation":{"ephemeral_5m_input_tokens":0,"ephemeral_1h_input_tokens":0},"service_tier":"standard"}}',NULL,NULL);
INSERT INTO "turns" VALUES('local','01a1fb0a-7d84-780f-9a88-857c72ce701f','01a1fb0a-7d84-70ee-8a3e-80fb57cb799f',NULL,'claude-sonnet-5-5','failed','[{"role":"user","content":"#sim words=5 rate=0 fault=500@0"}]','[]','',NULL,'{"code":"backend_failed","message":"Internal server error"}',1,'{}',1795213131141311,1795213131428977,76,0,'e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855',NULL,'{}',NULL,NULL);
INSERT INTO "turns" VALUES('local','01a1fb0a-80f1-7438-b09b-25de2aaa926f','01a1fb0a-80f1-76bb-91bb-ec9c21578cc8',NULL,'claude-sonnet-5-5','cancelled','[{"role":"user","content":"#sim words=900 rate=20"}]','[{"type":"text","text":"w000000 w000001 w000002 w000003 w000004"}]','w000000 w000001 w000002 w000003 w000004',NULL,NULL,1,'{}',1795213132019922,1795213132244454,87,39,'173bf03596201b065d017e85588d422a822bad36ac299d509a6e7ad7d1ff9ef0',NULL,'{"usage":{"cache_creation":{"ephemeral_5m_input_tokens":0,"ephemeral_1h_input_tokens":0},"service_tier":"standard"}}',NULL,NULL);
INSERT INTO "turns" VALUES('local','01a1fb0a-9282-7c01-9248-332c534ea316','01a1fb0a-9282-74d8-815a-e7f7ddbc80f5',NULL,'claude-sonnet-5-5','completed','[{"role":"user","content":"#sim words=24 rate=10"}]','[{"type":"text","text":"w000000 w000001 w000002 w000003 w000004 w000005 w000006 w000007 w000008 w000009 w000010 w000011 w000012 w000013 w000014 w000015 w000016 w000017 w000018 w000019 w000020 w000021 w000022 w000023"}]','w000000 w000001 w000002 w000003 w000004 w000005 w000006 w000007 w000008 w000009 w000010 w000011 w000012 w000013 w000014 w000015 w000016 w000017 w000018 w000019 w000020 w000021 w000022 w000023','end_turn',NULL,1,'{}',1795213136514716,1795213138826584,121,191,'86b7b8f4249e7ac520880d0dcba1da4f99208acb4212212be55bcb09aa37a091',NULL,'{"usage":{"cache_creation":{"ephemeral_5m_input_tokens":0,"ephemeral_1h_input_tokens":0},"service_tier":"standard"}}',NULL,NULL);
INSERT INTO "turns" VALUES('local','01a1fb0a-9c3f-7fb9-9b7f-1ea3f8940733','01a1fb0a-9c3f-7742-b8e2-b03031ba3f5b',NULL,'claude-sonnet-5-5','completed','[]','[]','',NULL,NULL,1,'{}',1795213139013847,1795213139439008,142,0,'e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855',NULL,'{}',NULL,'{"of":2,"parallel":8,"done":2,"cost_nusd":66000}');
INSERT INTO "turns" VALUES('local','01a1fb0a-9c3f-7e8d-9b81-1656379dde28','01a1fb0a-9c3f-7742-b8e2-b03031ba3f5b','01a1fb0a-9c3f-7fb9-9b7f-1ea3f8940733','claude-sonnet-5-5','completed','[{"role":"user","content":"#sim words=2 rate=0 tag=b0x"}]','[{"type":"text","text":"b0x000000 b0x000001"}]','b0x000000 b0x000001','end_turn',NULL,1,'{"custom_id":"input-0"}',1795213139022301,1795213139391404,132,19,'ab8ab576e8a2d4d0fd96b76075ffad21d5b9133b4536f004378b3ebbd99798f9',NULL,'{"usage":{"cache_creation":{"ephemeral_5m_input_tokens":0,"ephemeral_1h_input_tokens":0},"service_tier":"standard"}}',NULL,NULL);
INSERT INTO "turns" VALUES('local','01a1fb0a-9c3f-7600-a160-673a461bd321','01a1fb0a-9c3f-7742-b8e2-b03031ba3f5b','01a1fb0a-9c3f-7fb9-9b7f-1ea3f8940733','claude-sonnet-5-5','completed','[{"role":"user","content":"#sim words=3 rate=0 tag=b1x"}]','[{"type":"text","text":"b1x000000 b1x000001 b1x000002"}]','b1x000000 b1x000001 b1x000002','end_turn',NULL,1,'{"custom_id":"input-1"}',1795213139022320,1795213139435890,140,29,'d2afc9fff75977f0fa43e545d4d53040b6f4a629001ab546f4c9e85c2ae6dc9c',NULL,'{"usage":{"cache_creation":{"ephemeral_5m_input_tokens":0,"ephemeral_1h_input_tokens":0},"service_tier":"standard"}}',NULL,NULL);
CREATE TABLE usage (
    tenant                      TEXT NOT NULL,
    session                     TEXT NOT NULL,
    turn                        TEXT NOT NULL,
    input_tokens                INTEGER NOT NULL,
    output_tokens               INTEGER NOT NULL,
    cache_creation_input_tokens INTEGER NOT NULL,
    cache_read_input_tokens     INTEGER NOT NULL,
    is_estimated                INTEGER NOT NULL, -- 1: a call broke off before the model had counted its output
    cost_nusd                   INTEGER NOT NULL, messages INTEGER NOT NULL DEFAULT 0, model TEXT NOT NULL DEFAULT '', asked_at INTEGER NOT NULL DEFAULT 0, asked_by TEXT, -- billionths of a dollar
    PRIMARY KEY (tenant, session, turn),
    FOREIGN KEY (tenant, turn) REFERENCES turns (tenant, turn)
) STRICT, WITHOUT ROWID;
INSERT INTO "usage" VALUES('local','01a1fb0a-76e8-7f74-9169-6503086a84a0','01a1fb0a-76e8-78bc-a07a-62fd9a55eef8',5,6,0,0,0,70000,2,'claude-sonnet-5-5',1795213129476495,NULL);
INSERT INTO "usage" VALUES('local','01a1fb0a-76e8-7f74-9169-6503086a84a0','01a1fb0a-78cf-7e04-a766-b1f2c0e0c883',13,7,0,0,0,96000,2,'claude-sonnet-5-5',1795213129941263,NULL);
INSERT INTO "usage" VALUES('local','01a1fb0a-76e8-7f74-9169-6503086a84a0','01a1fb0a-792b-7b80-b819-629a3f9ef1ef',23,4,0,0,0,86000,2,'claude-sonnet-5-5',1795213130033894,NULL);
INSERT INTO "usage" VALUES('local','01a1fb0a-7997-7469-b437-149f3ae62856','01a1fb0a-7997-78be-bd2f-103d97a92b78',4,3,0,0,0,38000,2,'claude-sonnet-5-5',1795213130136256,NULL);
INSERT INTO "usage" VALUES('local','01a1fb0a-7a0c-7748-9fc0-c9e187ccd65a','01a1fb0a-7a0b-7267-8300-0d1e368a17b5',49,14,0,0,1,238000,2,'claude-sonnet-5-5',1795213130255473,NULL);
INSERT INTO "usage" VALUES('local','01a1fb0a-7a97-785f-96f0-3fe01e3a9ff7','01a1fb0a-7a97-7810-90ce-3dfbed00c84a',8,14,0,0,1,156000,2,'claude-sonnet-5-5',1795213130392178,NULL);
INSERT INTO "usage" VALUES('local','01a1fb0a-7b13-7375-9dbe-26e6f72d1695','01a1fb0a-7b13-7c9a-b857-bf8e76779f78',4,12,0,0,1,128000,2,'claude-sonnet-5-5',1795213130519564,NULL);
INSERT INTO "usage" VALUES('local','01a1fb0a-7d84-70ee-8a3e-80fb57cb799f','01a1fb0a-7d84-780f-9a88-857c72ce701f',0,0,0,0,0,0,1,'claude-sonnet-5-5',1795213131141311,NULL);
INSERT INTO "usage" VALUES('local','01a1fb0a-80f1-76bb-91bb-ec9c21578cc8','01a1fb0a-80f1-7438-b09b-25de2aaa926f',3,12,0,0,1,126000,2,'claude-sonnet-5-5',1795213132019922,NULL);
INSERT INTO "usage" VALUES('local','01a1fb0a-9282-74d8-815a-e7f7ddbc80f5','01a1fb0a-9282-7c01-9248-332c534ea316',3,24,0,0,0,246000,2,'claude-sonnet-5-5',1795213136514716,NULL);
INSERT INTO "usage" VALUES('local','01a1fb0a-9c3f-7742-b8e2-b03031ba3f5b','01a1fb0a-9c3f-7600-a160-673a461bd321',4,3,0,0,0,38000,2,'claude-sonnet-5-5',1795213139022320,NULL);
INSERT INTO "usage" VALUES('local','01a1fb0a-9c3f-7742-b8e2-b03031ba3f5b','01a1fb0a-9c3f-7e8d-9b81-1656379dde28',4,2,0,0,0,28000,2,'claude-sonnet-5-5',1795213139022301,NULL);
INSERT INTO "usage" VALUES('local','01a1fb0a-9c3f-7742-b8e2-b03031ba3f5b','01a1fb0a-9c3f-7fb9-9b7f-1ea3f8940733',0,0,0,0,0,0,0,'claude-sonnet-5-5',1795213139013847,NULL);
CREATE INDEX sessions_by_update ON sessions (tenant, updated_at, session);
CREATE INDEX turns_by_session ON turns (tenant, session, asked_at, turn);
CREATE INDEX sessions_by_project ON sessions (tenant, project, updated_at, session);
CREATE INDEX projects_by_creation ON projects (tenant, created_at, project);
CREATE INDEX usage_by_time ON usage (tenant, asked_at);
CREATE INDEX turns_by_parent ON turns (tenant, parent, turn);
CREATE INDEX turns_running ON turns (tenant, outcome, session) WHERE outcome = 'running';
CREATE INDEX blob_uses_by_turn ON blob_uses (tenant, turn, sha256);
CREATE INDEX turns_batches ON turns (tenant, asked_at, turn) WHERE batch IS NOT NULL;
COMMIT;
PRAGMA user_version = 7;

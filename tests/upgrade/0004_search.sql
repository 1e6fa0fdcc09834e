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
INSERT INTO "blob_uses" VALUES('local','b0c9f6b97c082472ddff9d19e5795a8224b8f5d4df39fe3642e1049034875ca0','01a222dc-f21b-7f2d-8234-bdec4b57ad97');
CREATE TABLE files (
    tenant     TEXT NOT NULL,
    file       TEXT NOT NULL,
    sha256     TEXT NOT NULL,
    bytes      INTEGER NOT NULL,
    filename   TEXT NOT NULL,
    media_type TEXT NOT NULL,
    purpose    TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    expires_at INTEGER,
    PRIMARY KEY (tenant, file)
) STRICT, WITHOUT ROWID;
CREATE TABLE identity (id TEXT NOT NULL);
INSERT INTO "identity" VALUES('3baeb23782124a5fb16bff86ebbc70c0');
CREATE TABLE labels (
    tenant   TEXT NOT NULL,
    turn     TEXT NOT NULL,
    name     TEXT NOT NULL,
    value    TEXT NOT NULL,
    asked_at INTEGER NOT NULL,
    PRIMARY KEY (tenant, turn, name)
) STRICT, WITHOUT ROWID;
INSERT INTO "labels" VALUES('local','01a222dc-f21b-751b-a2d9-9d898334eaaa','metadata.custom_id','input-0',1795881235010959);
INSERT INTO "labels" VALUES('local','01a222dc-f21b-7419-b689-314207238232','metadata.custom_id','input-1',1795881235011029);
INSERT INTO "labels" VALUES('local','01a222dc-c34a-7e85-bf8d-4f34c452bda3','metadata.of','a client',1795881223008494);
INSERT INTO "labels" VALUES('local','01a222dc-c34a-7e85-bf8d-4f34c452bda3','model','claude-sonnet-5-5',1795881223008494);
INSERT INTO "labels" VALUES('local','01a222dc-c463-70be-8d0a-54b9c4f93a20','model','claude-sonnet-5-5',1795881223288628);
INSERT INTO "labels" VALUES('local','01a222dc-c567-706a-a0f6-6e8ce8066bb5','model','claude-sonnet-5-5',1795881223538140);
INSERT INTO "labels" VALUES('local','01a222dc-c653-7da4-9b94-5174ccfde2fc','model','claude-sonnet-5-5',1795881223764548);
INSERT INTO "labels" VALUES('local','01a222dc-c71a-75fd-b8dd-9c4393b5393d','model','claude-sonnet-5-5',1795881223963178);
INSERT INTO "labels" VALUES('local','01a222dc-c7ff-7e9a-9404-872244225a54','model','claude-sonnet-5-5',1795881224192617);
INSERT INTO "labels" VALUES('local','01a222dc-c8f2-733e-b529-8843f3f71552','model','claude-sonnet-5-5',1795881224435562);
INSERT INTO "labels" VALUES('local','01a222dc-cbbb-7632-a336-8f477fc596aa','model','claude-sonnet-5-5',1795881225147833);
INSERT INTO "labels" VALUES('local','01a222dc-d00f-72e1-b33b-81240202806b','model','claude-sonnet-5-5',1795881226255583);
INSERT INTO "labels" VALUES('local','01a222dc-e744-7c99-be74-060845f361f8','model','claude-sonnet-5-5',1795881232197320);
INSERT INTO "labels" VALUES('local','01a222dc-f21b-7f2d-8234-bdec4b57ad97','model','claude-sonnet-5-5',1795881234985058);
INSERT INTO "labels" VALUES('local','01a222dc-f21b-751b-a2d9-9d898334eaaa','model','claude-sonnet-5-5',1795881235010959);
INSERT INTO "labels" VALUES('local','01a222dc-f21b-7419-b689-314207238232','model','claude-sonnet-5-5',1795881235011029);
CREATE TABLE older_costs (
    tenant   TEXT NOT NULL,
    asked_at INTEGER NOT NULL,
    PRIMARY KEY (tenant)
) STRICT, WITHOUT ROWID;
CREATE TABLE projects (
    tenant      TEXT NOT NULL,
    project     TEXT NOT NULL,
    name        TEXT NOT NULL,
    description TEXT,
    created_at  INTEGER NOT NULL,
    PRIMARY KEY (tenant, project)
) STRICT, WITHOUT ROWID;
CREATE TABLE reached (seq INTEGER NOT NULL);
INSERT INTO "reached" VALUES(145);
CREATE TABLE searched (
    number INTEGER NOT NULL PRIMARY KEY,
    tenant TEXT NOT NULL,
    turn   TEXT NOT NULL,
    words  TEXT NOT NULL
) STRICT;
INSERT INTO "searched" VALUES(1838982372360697856,'local','01a222dc-c34a-7e85-bf8d-4f34c452bda3','2 j2tbicbk 7j5jrig2 hngiga3l kzv3uogo iebygezo sf6xbbdy rampwali lidgogns wc5np6b6 i5ti7wzq fk4zjzna');
INSERT INTO "searched" VALUES(1838982372647555072,'local','01a222dc-c463-70be-8d0a-54b9c4f93a20','2 j2tbicbk 2l2xtrxj xm2u243x 7j5jrig2 bx2oinvz kzv3uogo iebygezo sf6xbbdy rampwali lidgogns wc5np6b6');
INSERT INTO "searched" VALUES(1838982372903055360,'local','01a222dc-c567-706a-a0f6-6e8ce8066bb5','2 j2tbicbk 7j5jrig2 ocxs66zv df77xrpt q3462dry ftqgced4 2twv6khk sdkb6t2j gwnyr5gv kzv3uogo iebygezo sf6xbbdy rampwali');
INSERT INTO "searched" VALUES(1838982373134897152,'local','01a222dc-c653-7da4-9b94-5174ccfde2fc','2 j2tbicbk 7j5jrig2 xm2u243x rnnd4gag ocxs66zv kzv3uogo iebygezo sf6xbbdy rampwali lidgogns');
INSERT INTO "searched" VALUES(1838982373338294272,'local','01a222dc-c71a-75fd-b8dd-9c4393b5393d','2 j2tbicbk 7j5jrig2 sy5vxfnh kzv3uogo iebygezo mfkigp6x eu7bq3ko eqj4hhu6 sf6xbbdy rampwali lidgogns wc5np6b6 i5ti7wzq fk4zjzna 6lmffu75 bozbols5 ia7qxsv5');
INSERT INTO "searched" VALUES(1838982373573239808,'local','01a222dc-c7ff-7e9a-9404-872244225a54','2 j2tbicbk 7j5jrig2 klqosgfo kzv3uogo iebygezo mfkigp6x eu7bq3ko s7imtieb sf6xbbdy rampwali lidgogns wc5np6b6 i5ti7wzq fk4zjzna 6lmffu75');
INSERT INTO "searched" VALUES(1838982373822015488,'local','01a222dc-c8f2-733e-b529-8843f3f71552','2 j2tbicbk 7j5jrig2 o5ydl3tv kzv3uogo iebygezo mfkigp6x eu7bq3ko 652n5fkm sf6xbbdy rampwali lidgogns wc5np6b6 i5ti7wzq');
INSERT INTO "searched" VALUES(1838982374551380992,'local','01a222dc-cbbb-7632-a336-8f477fc596aa','2 j2tbicbk 7j5jrig2 chdu3lrj kzv3uogo iebygezo mfkigp6x j5vsjktf');
INSERT INTO "searched" VALUES(1838982375685716992,'local','01a222dc-d00f-72e1-b33b-81240202806b','2 j2tbicbk 7j5jrig2 anbx24lr kzv3uogo hjkwzen7 sf6xbbdy rampwali lidgogns wc5np6b6 i5ti7wzq');
INSERT INTO "searched" VALUES(1838982381770055680,'local','01a222dc-e744-7c99-be74-060845f361f8','2 j2tbicbk 7j5jrig2 pj4durti kzv3uogo e35zrji3 sf6xbbdy rampwali lidgogns wc5np6b6 i5ti7wzq fk4zjzna 6lmffu75 bozbols5 ia7qxsv5 a3kxmypy sqrh3gy4 dfe6xlc5 c3vc7vx2 r52br6ea 37cfl7jb hxn4pjig bqsfqrv3 olbhpt7v 75e35y2k 34e2onf2 2tn6dcua 5vqzs7qg uswghfkh yuojdz77');
INSERT INTO "searched" VALUES(1838982384651222016,'local','01a222dc-f21b-751b-a2d9-9d898334eaaa','2 j2tbicbk 7j5jrig2 ocxs66zv kzv3uogo iebygezo pwp4wihc dfhf5sug qavx2kpv sclrtpb5');
INSERT INTO "searched" VALUES(1838982384651293696,'local','01a222dc-f21b-7419-b689-314207238232','2 j2tbicbk 7j5jrig2 xm2u243x kzv3uogo iebygezo pwp4wihc oeaa2m54 3kze5z2s ppn6dqnc w2izp6by');
CREATE TABLE session_counts (
    tenant   TEXT NOT NULL,
    project  TEXT NOT NULL,
    sessions INTEGER NOT NULL,
    PRIMARY KEY (tenant, project)
) STRICT, WITHOUT ROWID;
INSERT INTO "session_counts" VALUES('local','',9);
CREATE TABLE sessions (
    tenant     TEXT NOT NULL,
    session    TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL, title TEXT, model TEXT, system TEXT, project TEXT, user TEXT, -- when its last turn was requested or ended
    PRIMARY KEY (tenant, session)
) STRICT, WITHOUT ROWID;
INSERT INTO "sessions" VALUES('local','01a222dc-c34a-74e2-b9ad-f7a8ed6c430a',1795881223008494,1795881223596659,NULL,NULL,NULL,NULL,NULL);
INSERT INTO "sessions" VALUES('local','01a222dc-c653-7936-bc14-c0af73738b99',1795881223764548,1795881223800956,NULL,NULL,NULL,NULL,NULL);
INSERT INTO "sessions" VALUES('local','01a222dc-c71a-7a04-bc8e-84534a2b4ee2',1795881223963178,1795881224050835,NULL,NULL,NULL,NULL,NULL);
INSERT INTO "sessions" VALUES('local','01a222dc-c800-743b-9af1-731bdf21290c',1795881224192617,1795881224262125,NULL,NULL,NULL,NULL,NULL);
INSERT INTO "sessions" VALUES('local','01a222dc-c8f2-7a7d-9b15-e36e434bc670',1795881224435562,1795881224483329,NULL,NULL,NULL,NULL,NULL);
INSERT INTO "sessions" VALUES('local','01a222dc-cbbb-75c5-b26f-3f5196ce6820',1795881225147833,1795881225617075,NULL,NULL,NULL,NULL,NULL);
INSERT INTO "sessions" VALUES('local','01a222dc-d00f-7a16-bd71-3bb7a9fb717f',1795881226255583,1795881226479814,NULL,NULL,NULL,NULL,NULL);
INSERT INTO "sessions" VALUES('local','01a222dc-e744-78a4-bee9-4761d6e03cbe',1795881232197320,1795881234521665,NULL,NULL,NULL,NULL,NULL);
INSERT INTO "sessions" VALUES('local','01a222dc-f21b-79e1-8386-7fa1329ed01c',1795881234985058,1795881235093796,NULL,NULL,NULL,NULL,NULL);
ANALYZE "sqlite_master";
INSERT INTO "sqlite_stat1" VALUES('blob_releases','blob_releases','1000 100 1');
INSERT INTO "sqlite_stat1" VALUES('blob_uses','blob_uses','100000 10000 2 1');
INSERT INTO "sqlite_stat1" VALUES('blob_uses','blob_uses_by_turn','100000 10000 2 1');
INSERT INTO "sqlite_stat1" VALUES('files','files','100000 10000 1');
INSERT INTO "sqlite_stat1" VALUES('files','files_expiring','10000 1');
INSERT INTO "sqlite_stat1" VALUES('labels','labels','30000000 3000000 3 1');
INSERT INTO "sqlite_stat1" VALUES('labels','labels_by_value','30000000 3000000 100000 1000 1 1');
INSERT INTO "sqlite_stat1" VALUES('projects','projects','1000 100 1');
INSERT INTO "sqlite_stat1" VALUES('projects','projects_by_creation','1000 100 1 1');
INSERT INTO "sqlite_stat1" VALUES('searched','searched_by_turn','10000000 1000000 1');
INSERT INTO "sqlite_stat1" VALUES('searched','searched_older','1000 100 1');
INSERT INTO "sqlite_stat1" VALUES('session_counts','session_counts','1000 100 1');
INSERT INTO "sqlite_stat1" VALUES('sessions','sessions','3000000 300000 1');
INSERT INTO "sqlite_stat1" VALUES('sessions','sessions_by_age','3000000 1');
INSERT INTO "sqlite_stat1" VALUES('sessions','sessions_by_project','3000000 300000 300 1 1');
INSERT INTO "sqlite_stat1" VALUES('sessions','sessions_by_project_and_user','3000000 300000 300 30 1 1');
INSERT INTO "sqlite_stat1" VALUES('sessions','sessions_by_update','3000000 300000 1 1');
INSERT INTO "sqlite_stat1" VALUES('sessions','sessions_by_user','3000000 300000 30 1 1');
INSERT INTO "sqlite_stat1" VALUES('totals','totals','10000000 1000000 20000 30 1');
INSERT INTO "sqlite_stat1" VALUES('totals','totals_by_day','10000000 1000000 20000 200 1');
INSERT INTO "sqlite_stat1" VALUES('turns','sqlite_autoindex_turns_1','10000000 1000000 1');
INSERT INTO "sqlite_stat1" VALUES('turns','turns_batches','10000 1000 1 1');
INSERT INTO "sqlite_stat1" VALUES('turns','turns_by_parent','10000000 1000000 2 1');
INSERT INTO "sqlite_stat1" VALUES('turns','turns_by_session','10000000 1000000 3 1 1');
INSERT INTO "sqlite_stat1" VALUES('turns','turns_by_time','10000000 1000000 1 1');
INSERT INTO "sqlite_stat1" VALUES('turns','turns_running','100 10 10 1');
INSERT INTO "sqlite_stat1" VALUES('unsearched','unsearched','1000 100 1');
INSERT INTO "sqlite_stat1" VALUES('unstored','unstored','10000 1000 1');
INSERT INTO "sqlite_stat1" VALUES('unstored','unstored_by_user','10000 1000 10 1');
INSERT INTO "sqlite_stat1" VALUES('usage','usage','10000000 1000000 3 1');
INSERT INTO "sqlite_stat1" VALUES('usage','usage_by_time','10000000 1000000 1');
INSERT INTO "sqlite_stat1" VALUES('usage','usage_by_turn','10000000 1000000 1');
INSERT INTO "sqlite_stat1" VALUES('turns','turns_cancelled_or_failed','1000000 100000 50000 1 1');
INSERT INTO "sqlite_stat1" VALUES('files','files_by_purpose','100000 10000 1000 1');
INSERT INTO "sqlite_stat1" VALUES('turns','turns_batches_by_api','10000 1000 300 1 1');
INSERT INTO "sqlite_stat1" VALUES('older_costs','older_costs','100 1');
CREATE TABLE totals (
    tenant                      TEXT NOT NULL,
    dimension                   TEXT NOT NULL,
    key                         TEXT NOT NULL,
    day                         INTEGER NOT NULL, -- since 1970
    turns                       INTEGER NOT NULL,
    messages                    INTEGER NOT NULL,
    input_tokens                INTEGER NOT NULL,
    output_tokens               INTEGER NOT NULL,
    cache_creation_input_tokens INTEGER NOT NULL,
    cache_read_input_tokens     INTEGER NOT NULL,
    cost_nusd                   INTEGER NOT NULL,
    asked_at                    INTEGER NOT NULL, -- of the last turn
    PRIMARY KEY (tenant, dimension, key, day)
) STRICT, WITHOUT ROWID;
INSERT INTO "totals" VALUES('local','day','2026-11-28',20785,13,23,120,101,0,0,1250000,1795881235011029);
INSERT INTO "totals" VALUES('local','key','',20785,13,23,120,101,0,0,1250000,1795881235011029);
INSERT INTO "totals" VALUES('local','metadata.custom_id','input-0',20785,1,2,4,2,0,0,28000,1795881235010959);
INSERT INTO "totals" VALUES('local','metadata.custom_id','input-1',20785,1,2,4,3,0,0,38000,1795881235011029);
INSERT INTO "totals" VALUES('local','metadata.of','a client',20785,1,2,5,6,0,0,70000,1795881223008494);
INSERT INTO "totals" VALUES('local','model','claude-sonnet-5-5',20785,13,23,120,101,0,0,1250000,1795881235011029);
INSERT INTO "totals" VALUES('local','project','',20785,13,23,120,101,0,0,1250000,1795881235011029);
INSERT INTO "totals" VALUES('local','session','01a222dc-c34a-74e2-b9ad-f7a8ed6c430a',20785,3,6,41,17,0,0,252000,1795881223538140);
INSERT INTO "totals" VALUES('local','session','01a222dc-c653-7936-bc14-c0af73738b99',20785,1,2,4,3,0,0,38000,1795881223764548);
INSERT INTO "totals" VALUES('local','session','01a222dc-c71a-7a04-bc8e-84534a2b4ee2',20785,1,2,49,14,0,0,238000,1795881223963178);
INSERT INTO "totals" VALUES('local','session','01a222dc-c800-743b-9af1-731bdf21290c',20785,1,2,8,14,0,0,156000,1795881224192617);
INSERT INTO "totals" VALUES('local','session','01a222dc-c8f2-7a7d-9b15-e36e434bc670',20785,1,2,4,12,0,0,128000,1795881224435562);
INSERT INTO "totals" VALUES('local','session','01a222dc-cbbb-75c5-b26f-3f5196ce6820',20785,1,1,0,0,0,0,0,1795881225147833);
INSERT INTO "totals" VALUES('local','session','01a222dc-d00f-7a16-bd71-3bb7a9fb717f',20785,1,2,3,12,0,0,126000,1795881226255583);
INSERT INTO "totals" VALUES('local','session','01a222dc-e744-78a4-bee9-4761d6e03cbe',20785,1,2,3,24,0,0,246000,1795881232197320);
INSERT INTO "totals" VALUES('local','session','01a222dc-f21b-79e1-8386-7fa1329ed01c',20785,3,4,8,5,0,0,66000,1795881235011029);
INSERT INTO "totals" VALUES('local','user','',20785,13,23,120,101,0,0,1250000,1795881235011029);
CREATE TABLE turns (
    tenant      TEXT NOT NULL,
    turn        TEXT NOT NULL,
    session     TEXT NOT NULL,
    parent      TEXT, -- no foreign key: a database rebuilt from the log may lack older turns
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
    cursor      INTEGER NOT NULL, -- the sequence of the last entry in this row's fold
    text_chars  INTEGER, -- length and hash in the turn's end, by which an audit can verify the text
    text_sha256 TEXT, stop_sequence TEXT, envelope TEXT NOT NULL DEFAULT '{}', fits INTEGER, batch TEXT, first_token_at INTEGER, cost_is_unknown INTEGER NOT NULL DEFAULT 0, project TEXT, user TEXT, answered_by TEXT, by_model TEXT,
    PRIMARY KEY (tenant, turn),
    FOREIGN KEY (tenant, session) REFERENCES sessions (tenant, session)
) STRICT;
INSERT INTO "turns" VALUES('local','01a222dc-c34a-7e85-bf8d-4f34c452bda3','01a222dc-c34a-74e2-b9ad-f7a8ed6c430a',NULL,'claude-sonnet-5-5','completed','[{"role":"user","content":"#sim words=6 rate=0"}]','[{"type":"text","text":"w000000 w000001 w000002 w000003 w000004 w000005"}]','w000000 w000001 w000002 w000003 w000004 w000005','end_turn',NULL,1,'{"of":"a client"}',1795881223008494,1795881223092485,12,47,'afdf7e1a6ff783fded0bd316c52bcc455ff79870d51d289a94abfb091c3d7a99',NULL,'{"usage":{"cache_creation":{"ephemeral_5m_input_tokens":0,"ephemeral_1h_input_tokens":0},"service_tier":"standard"}}',NULL,NULL,1795881223075198,0,NULL,NULL,NULL,NULL);
INSERT INTO "turns" VALUES('local','01a222dc-c463-70be-8d0a-54b9c4f93a20','01a222dc-c34a-74e2-b9ad-f7a8ed6c430a','01a222dc-c34a-7e85-bf8d-4f34c452bda3','claude-sonnet-5-5','completed','[{"role":"user","content":"#sim thinking=3 words=4 rate=0"}]','[{"type":"thinking","thinking":"t000000 t000001 t000002","signature":"sim3ee433940cc6d5e22311354c92bf57dbe8554b3198c34617f849f7ce238ff2cc"},{"type":"text","text":"w000000 w000001 w000002 w000003"}]','w000000 w000001 w000002 w000003','end_turn',NULL,1,'{}',1795881223288628,1795881223336213,25,31,'8438341658e2f7a37b7e1dc2d830804317ff21318af71b8be92701640610c685',NULL,'{"usage":{"cache_creation":{"ephemeral_5m_input_tokens":0,"ephemeral_1h_input_tokens":0},"service_tier":"standard"}}',NULL,NULL,1795881223330969,0,NULL,NULL,NULL,NULL);
INSERT INTO "turns" VALUES('local','01a222dc-c567-706a-a0f6-6e8ce8066bb5','01a222dc-c34a-74e2-b9ad-f7a8ed6c430a','01a222dc-c463-70be-8d0a-54b9c4f93a20','claude-sonnet-5-5','completed','[{"role":"user","content":"#sim words=2 tool=look json={\"at\":\"the sky\"} rate=0"}]','[{"type":"text","text":"w000000 w000001"},{"type":"tool_use","id":"toolu_sim11a23dab9b13cd599964","name":"look","input":{"at":"the sky"}}]','w000000 w000001','tool_use',NULL,1,'{}',1795881223538140,1795881223596659,36,15,'6b8ed62a00152b286d4f58725a14ede59a4ccad4a4f9fc23aafc864ba4a734c1',NULL,'{"usage":{"cache_creation":{"ephemeral_5m_input_tokens":0,"ephemeral_1h_input_tokens":0},"service_tier":"standard"}}',NULL,NULL,1795881223582843,0,NULL,NULL,NULL,NULL);
INSERT INTO "turns" VALUES('local','01a222dc-c653-7da4-9b94-5174ccfde2fc','01a222dc-c653-7936-bc14-c0af73738b99',NULL,'claude-sonnet-5-5','completed','[{"role":"user","content":"#sim words=3 cites=2 rate=0"}]','[{"type":"text","text":"w000000 w000001 w000002","citations":[{"type":"char_location","cited_text":"000000000.","document_index":0,"document_title":null,"start_char_index":0,"end_char_index":10,"file_id":null},{"type":"web_search_result_location","cited_text":"000000001.","url":"https://page.example/1","title":"Page 1","encrypted_index":"c2lt"}]}]','w000000 w000001 w000002','end_turn',NULL,1,'{}',1795881223764548,1795881223800956,46,23,'8eca02c04fab89e03d7d6aac88b791562745a4fefd7c28c330ac3c50944d7aec',NULL,'{"usage":{"cache_creation":{"ephemeral_5m_input_tokens":0,"ephemeral_1h_input_tokens":0},"service_tier":"standard"}}',NULL,NULL,1795881223792641,0,NULL,NULL,NULL,NULL);
INSERT INTO "turns" VALUES('local','01a222dc-c71a-75fd-b8dd-9c4393b5393d','01a222dc-c71a-7a04-bc8e-84534a2b4ee2',NULL,'claude-sonnet-5-5','completed','[{"role":"user","content":"#sim words=9 rate=0 fault=cut@4x1"}]','[{"type":"text","text":"w000000 w000001 w000002 w000003 w000004 w000005 w000006 w000007 w000008"}]','w000000 w000001 w000002 w000003 w000004 w000005 w000006 w000007 w000008','end_turn',NULL,2,'{}',1795881223963178,1795881224050835,57,71,'f284a32a8e5a4806c44cde71b65ea7dbc94d7fb62e2dc658dec983eb22bfaf57',NULL,'{"usage":{"cache_creation":{"ephemeral_5m_input_tokens":0,"ephemeral_1h_input_tokens":0},"service_tier":"standard"}}',NULL,NULL,1795881224004721,0,NULL,NULL,NULL,NULL);
INSERT INTO "turns" VALUES('local','01a222dc-c7ff-7e9a-9404-872244225a54','01a222dc-c800-743b-9af1-731bdf21290c',NULL,'claude-sonnet-5-5','completed','[{"role":"user","content":"#sim words=7 rate=0 fault=cut@3x1"}]','[{"type":"text","text":"w000000 w000001 w000002 w000003 w000004 w000005 w000006"}]','w000000 w000001 w000002 w000003 w000004 w000005 w000006','end_turn',NULL,2,'{}',1795881224192617,1795881224262125,69,55,'6d750de6e71d0f1df6bd9166264d7458d44eb5fb4305f244cf6ba727524180f8',NULL,'{"usage":{"cache_creation":{"ephemeral_5m_input_tokens":0,"ephemeral_1h_input_tokens":0},"service_tier":"standard"}}',NULL,NULL,1795881224218784,0,NULL,NULL,NULL,NULL);
INSERT INTO "turns" VALUES('local','01a222dc-c8f2-733e-b529-8843f3f71552','01a222dc-c8f2-7a7d-9b15-e36e434bc670',NULL,'claude-sonnet-5-5','failed','[{"role":"user","content":"#sim words=8 rate=0 fault=cut@5x1"}]','[{"type":"text","text":"w000000 w000001 w000002 w000003 w000004"}]','w000000 w000001 w000002 w000003 w000004',NULL,'{"code":"interrupted","message":"the answer broke off, and the request has on_interrupt: fail; the last time: the model''s answer broke off: ReadError"}',1,'{}',1795881224435562,1795881224483329,75,39,'173bf03596201b065d017e85588d422a822bad36ac299d509a6e7ad7d1ff9ef0',NULL,'{"usage":{"cache_creation":{"ephemeral_5m_input_tokens":0,"ephemeral_1h_input_tokens":0},"service_tier":"standard"}}',NULL,NULL,1795881224466479,0,NULL,NULL,NULL,NULL);
INSERT INTO "turns" VALUES('local','01a222dc-cbbb-7632-a336-8f477fc596aa','01a222dc-cbbb-75c5-b26f-3f5196ce6820',NULL,'claude-sonnet-5-5','failed','[{"role":"user","content":"#sim words=5 rate=0 fault=500@0"}]','[]','',NULL,'{"code":"backend_failed","message":"Internal server error"}',1,'{}',1795881225147833,1795881225617075,79,0,'e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855',NULL,'{}',NULL,NULL,NULL,0,NULL,NULL,NULL,NULL);
INSERT INTO "turns" VALUES('local','01a222dc-d00f-72e1-b33b-81240202806b','01a222dc-d00f-7a16-bd71-3bb7a9fb717f',NULL,'claude-sonnet-5-5','cancelled','[{"role":"user","content":"#sim words=900 rate=20"}]','[{"type":"text","text":"w000000 w000001 w000002 w000003 w000004"}]','w000000 w000001 w000002 w000003 w000004',NULL,NULL,1,'{}',1795881226255583,1795881226479814,89,39,'173bf03596201b065d017e85588d422a822bad36ac299d509a6e7ad7d1ff9ef0',NULL,'{"usage":{"cache_creation":{"ephemeral_5m_input_tokens":0,"ephemeral_1h_input_tokens":0},"service_tier":"standard"}}',NULL,NULL,1795881226272322,0,NULL,NULL,NULL,NULL);
INSERT INTO "turns" VALUES('local','01a222dc-e744-7c99-be74-060845f361f8','01a222dc-e744-78a4-bee9-4761d6e03cbe',NULL,'claude-sonnet-5-5','completed','[{"role":"user","content":"#sim words=24 rate=10"}]','[{"type":"text","text":"w000000 w000001 w000002 w000003 w000004 w000005 w000006 w000007 w000008 w000009 w000010 w000011 w000012 w000013 w000014 w000015 w000016 w000017 w000018 w000019 w000020 w000021 w000022 w000023"}]','w000000 w000001 w000002 w000003 w000004 w000005 w000006 w000007 w000008 w000009 w000010 w000011 w000012 w000013 w000014 w000015 w000016 w000017 w000018 w000019 w000020 w000021 w000022 w000023','end_turn',NULL,1,'{}',1795881232197320,1795881234521665,124,191,'86b7b8f4249e7ac520880d0dcba1da4f99208acb4212212be55bcb09aa37a091',NULL,'{"usage":{"cache_creation":{"ephemeral_5m_input_tokens":0,"ephemeral_1h_input_tokens":0},"service_tier":"standard"}}',NULL,NULL,1795881232215662,0,NULL,NULL,NULL,NULL);
INSERT INTO "turns" VALUES('local','01a222dc-f21b-7f2d-8234-bdec4b57ad97','01a222dc-f21b-79e1-8386-7fa1329ed01c',NULL,'claude-sonnet-5-5','completed','[]','[]','',NULL,NULL,1,'{}',1795881234985058,1795881235093796,145,0,'e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855',NULL,'{}',NULL,'{"of":2,"parallel":8,"done":2,"cost_nusd":66000}',NULL,0,NULL,NULL,NULL,NULL);
INSERT INTO "turns" VALUES('local','01a222dc-f21b-751b-a2d9-9d898334eaaa','01a222dc-f21b-79e1-8386-7fa1329ed01c','01a222dc-f21b-7f2d-8234-bdec4b57ad97','claude-sonnet-5-5','completed','[{"role":"user","content":"#sim words=2 rate=0 tag=b0x"}]','[{"type":"text","text":"b0x000000 b0x000001"}]','b0x000000 b0x000001','end_turn',NULL,1,'{"custom_id":"input-0"}',1795881235010959,1795881235068733,140,19,'ab8ab576e8a2d4d0fd96b76075ffad21d5b9133b4536f004378b3ebbd99798f9',NULL,'{"usage":{"cache_creation":{"ephemeral_5m_input_tokens":0,"ephemeral_1h_input_tokens":0},"service_tier":"standard"}}',NULL,NULL,1795881235051638,0,NULL,NULL,NULL,NULL);
INSERT INTO "turns" VALUES('local','01a222dc-f21b-7419-b689-314207238232','01a222dc-f21b-79e1-8386-7fa1329ed01c','01a222dc-f21b-7f2d-8234-bdec4b57ad97','claude-sonnet-5-5','completed','[{"role":"user","content":"#sim words=3 rate=0 tag=b1x"}]','[{"type":"text","text":"b1x000000 b1x000001 b1x000002"}]','b1x000000 b1x000001 b1x000002','end_turn',NULL,1,'{"custom_id":"input-1"}',1795881235011029,1795881235073031,142,29,'d2afc9fff75977f0fa43e545d4d53040b6f4a629001ab546f4c9e85c2ae6dc9c',NULL,'{"usage":{"cache_creation":{"ephemeral_5m_input_tokens":0,"ephemeral_1h_input_tokens":0},"service_tier":"standard"}}',NULL,NULL,1795881235057898,0,NULL,NULL,NULL,NULL);
CREATE TABLE unsearched (
    tenant TEXT NOT NULL,
    turn   TEXT NOT NULL,
    PRIMARY KEY (tenant, turn)
) STRICT, WITHOUT ROWID;
CREATE TABLE unstored (
    tenant    TEXT NOT NULL,
    turn      TEXT NOT NULL,
    user_hash TEXT NOT NULL,
    PRIMARY KEY (tenant, turn)
) STRICT, WITHOUT ROWID;
CREATE TABLE usage (
    tenant                      TEXT NOT NULL,
    session                     TEXT NOT NULL,
    turn                        TEXT NOT NULL,
    input_tokens                INTEGER NOT NULL,
    output_tokens               INTEGER NOT NULL,
    cache_creation_input_tokens INTEGER NOT NULL,
    cache_read_input_tokens     INTEGER NOT NULL,
    is_estimated                INTEGER NOT NULL, -- 1: a call was interrupted before the model reported its output tokens
    cost_nusd                   INTEGER NOT NULL, messages INTEGER NOT NULL DEFAULT 0, model TEXT NOT NULL DEFAULT '', asked_at INTEGER NOT NULL DEFAULT 0, asked_by TEXT, -- billionths of a dollar
    PRIMARY KEY (tenant, session, turn),
    FOREIGN KEY (tenant, turn) REFERENCES turns (tenant, turn)
) STRICT, WITHOUT ROWID;
INSERT INTO "usage" VALUES('local','01a222dc-c34a-74e2-b9ad-f7a8ed6c430a','01a222dc-c34a-7e85-bf8d-4f34c452bda3',5,6,0,0,0,70000,2,'claude-sonnet-5-5',1795881223008494,NULL);
INSERT INTO "usage" VALUES('local','01a222dc-c34a-74e2-b9ad-f7a8ed6c430a','01a222dc-c463-70be-8d0a-54b9c4f93a20',13,7,0,0,0,96000,2,'claude-sonnet-5-5',1795881223288628,NULL);
INSERT INTO "usage" VALUES('local','01a222dc-c34a-74e2-b9ad-f7a8ed6c430a','01a222dc-c567-706a-a0f6-6e8ce8066bb5',23,4,0,0,0,86000,2,'claude-sonnet-5-5',1795881223538140,NULL);
INSERT INTO "usage" VALUES('local','01a222dc-c653-7936-bc14-c0af73738b99','01a222dc-c653-7da4-9b94-5174ccfde2fc',4,3,0,0,0,38000,2,'claude-sonnet-5-5',1795881223764548,NULL);
INSERT INTO "usage" VALUES('local','01a222dc-c71a-7a04-bc8e-84534a2b4ee2','01a222dc-c71a-75fd-b8dd-9c4393b5393d',49,14,0,0,1,238000,2,'claude-sonnet-5-5',1795881223963178,NULL);
INSERT INTO "usage" VALUES('local','01a222dc-c800-743b-9af1-731bdf21290c','01a222dc-c7ff-7e9a-9404-872244225a54',8,14,0,0,1,156000,2,'claude-sonnet-5-5',1795881224192617,NULL);
INSERT INTO "usage" VALUES('local','01a222dc-c8f2-7a7d-9b15-e36e434bc670','01a222dc-c8f2-733e-b529-8843f3f71552',4,12,0,0,1,128000,2,'claude-sonnet-5-5',1795881224435562,NULL);
INSERT INTO "usage" VALUES('local','01a222dc-cbbb-75c5-b26f-3f5196ce6820','01a222dc-cbbb-7632-a336-8f477fc596aa',0,0,0,0,0,0,1,'claude-sonnet-5-5',1795881225147833,NULL);
INSERT INTO "usage" VALUES('local','01a222dc-d00f-7a16-bd71-3bb7a9fb717f','01a222dc-d00f-72e1-b33b-81240202806b',3,12,0,0,1,126000,2,'claude-sonnet-5-5',1795881226255583,NULL);
INSERT INTO "usage" VALUES('local','01a222dc-e744-78a4-bee9-4761d6e03cbe','01a222dc-e744-7c99-be74-060845f361f8',3,24,0,0,0,246000,2,'claude-sonnet-5-5',1795881232197320,NULL);
INSERT INTO "usage" VALUES('local','01a222dc-f21b-79e1-8386-7fa1329ed01c','01a222dc-f21b-7419-b689-314207238232',4,3,0,0,0,38000,2,'claude-sonnet-5-5',1795881235011029,NULL);
INSERT INTO "usage" VALUES('local','01a222dc-f21b-79e1-8386-7fa1329ed01c','01a222dc-f21b-751b-a2d9-9d898334eaaa',4,2,0,0,0,28000,2,'claude-sonnet-5-5',1795881235010959,NULL);
INSERT INTO "usage" VALUES('local','01a222dc-f21b-79e1-8386-7fa1329ed01c','01a222dc-f21b-7f2d-8234-bdec4b57ad97',0,0,0,0,0,0,0,'claude-sonnet-5-5',1795881234985058,NULL);
CREATE INDEX sessions_by_update ON sessions (tenant, updated_at, session);
CREATE INDEX turns_by_session ON turns (tenant, session, asked_at, turn);
CREATE INDEX sessions_by_project ON sessions (tenant, project, updated_at, session);
CREATE INDEX projects_by_creation ON projects (tenant, created_at, project);
CREATE INDEX usage_by_time ON usage (tenant, asked_at);
CREATE INDEX turns_by_parent ON turns (tenant, parent, turn);
CREATE INDEX turns_running ON turns (tenant, outcome, session) WHERE outcome = 'running';
CREATE INDEX blob_uses_by_turn ON blob_uses (tenant, turn, sha256);
CREATE INDEX turns_batches ON turns (tenant, asked_at, turn) WHERE batch IS NOT NULL;
CREATE INDEX files_expiring ON files (expires_at) WHERE expires_at IS NOT NULL;
CREATE INDEX turns_by_time ON turns (tenant, asked_at, turn);
CREATE INDEX sessions_by_user ON sessions (tenant, user, updated_at, session) WHERE user IS NOT NULL;
CREATE INDEX labels_by_value ON labels (tenant, name, value, asked_at, turn);
CREATE INDEX totals_by_day ON totals (tenant, dimension, day, key);
CREATE TRIGGER session_created AFTER INSERT ON sessions BEGIN
    INSERT INTO session_counts SELECT new.tenant, value, 1 FROM json_each(json_array('', new.project))
    WHERE value IS NOT NULL ON CONFLICT DO UPDATE SET sessions = sessions + 1;
END;
CREATE TRIGGER session_deleted AFTER DELETE ON sessions BEGIN
    UPDATE session_counts SET sessions = sessions - 1
    WHERE tenant = old.tenant AND project IN ('', coalesce(old.project, ''));
    DELETE FROM session_counts
    WHERE tenant = old.tenant AND project IN ('', coalesce(old.project, '')) AND sessions = 0;
END;
CREATE TRIGGER session_joined_project AFTER UPDATE OF project ON sessions
WHEN old.project IS NULL AND new.project IS NOT NULL BEGIN
    INSERT INTO session_counts VALUES (new.tenant, new.project, 1) ON CONFLICT DO UPDATE SET sessions = sessions + 1;
END;
CREATE INDEX sessions_by_age ON sessions (updated_at);
CREATE UNIQUE INDEX searched_by_turn ON searched (tenant, turn);
CREATE TRIGGER searched_inserted AFTER INSERT ON searched BEGIN
    INSERT INTO search (rowid, words) VALUES (new.number, new.words);
END;
CREATE TRIGGER searched_deleted AFTER DELETE ON searched BEGIN
    INSERT INTO search (search, rowid, words) VALUES ('delete', old.number, old.words);
END;
CREATE TRIGGER searched_updated AFTER UPDATE ON searched BEGIN
    INSERT INTO search (search, rowid, words) VALUES ('delete', old.number, old.words);
    INSERT INTO search (rowid, words) VALUES (new.number, new.words);
END;
CREATE INDEX unstored_by_user ON unstored (tenant, user_hash, turn);
CREATE INDEX searched_older ON searched (tenant, turn) WHERE substr(words, 1, 2) <> '2 ';
CREATE INDEX sessions_by_project_and_user ON sessions (tenant, project, "user", updated_at, session)
WHERE "user" IS NOT NULL;
CREATE INDEX usage_by_turn ON usage (tenant, turn);
CREATE INDEX turns_cancelled_or_failed ON turns (tenant, outcome, asked_at, turn)
WHERE outcome IN ('cancelled', 'failed');
CREATE INDEX turns_batches_by_api ON turns (tenant, CASE
    WHEN batch -> 'file' ->> 'file' IS NOT NULL THEN 'openai'
    WHEN batch -> 'file' ->> 'endpoint' = '/v1/messages' THEN 'anthropic'
END, asked_at, turn) WHERE batch IS NOT NULL;
CREATE INDEX files_by_purpose ON files (tenant, purpose, file);
COMMIT;
CREATE VIRTUAL TABLE search USING fts5 (
    words, content = 'searched', content_rowid = 'number', tokenize = 'ascii', detail = 'none', columnsize = 0
);
INSERT INTO search (search) VALUES ('rebuild');
PRAGMA user_version = 23;

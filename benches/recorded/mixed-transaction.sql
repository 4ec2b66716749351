\set customer random(1, 200)
\set document random(1, 50)
\set cents random(1, 100000)
\set dice random(1, 20)
BEGIN;
UPDATE customers SET balance = balance + :cents / 100.0, seen = clock_timestamp(), vip = :cents > 90000 WHERE id = :customer;
INSERT INTO orders (customer, total, tags, details) VALUES (:customer, :cents / 100.0, ARRAY['web', 'd' || :dice],
    jsonb_build_object('lines', :dice, 'note', repeat('äb', :dice), 'cents', :cents));
UPDATE orders SET state = 'paid', customer = customer + 0 WHERE id = (SELECT id FROM orders WHERE state = 'new' AND customer = :customer LIMIT 1);
INSERT INTO journal VALUES (clock_timestamp(), 'c' || :customer, NULL, :cents / 7.0);
UPDATE documents SET revision = revision + 1 WHERE id = :document;
\if :dice > 18
UPDATE documents SET body = repeat(md5(:cents::text), 80), checksum = sha256(:cents::text::bytea) WHERE id = :document;
DELETE FROM journal WHERE who = 'c' || :customer;
\endif
\if :dice = 1
DELETE FROM orders WHERE customer = :customer;
\endif
COMMIT;
